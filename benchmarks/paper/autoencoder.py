"""Figures 8 and 18, Tables 4 to 6: autoencoders, every optimizer at its best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper import comparison, problems
from benchmarks.paper.comparison import Outcome
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.optimizers import OPTIMIZERS, product
from benchmarks.paper.report import plain, table

_TASKS: dict[Scale, tuple[str, ...]] = {
  "quick": ("curves",),
  "cpu": ("mnist", "faces", "curves"),
  "paper": ("mnist", "faces", "curves"),
}
# Table 4: training loss at the end of 500 s (FACES: 2000 s) on a V100.
PAPER = {
  "mnist": {"mbf": 51.49, "kfac": 53.56, "shampoo": 53.80, "adam": 53.67, "sgd": 55.63},
  "faces": {"mbf": 5.17, "kfac": 5.55, "shampoo": 7.21, "adam": 5.55, "sgd": 7.08},
  "curves": {
    "mbf": 55.14,
    "kfac": 56.47,
    "shampoo": 54.86,
    "adam": 55.23,
    "sgd": 55.49,
  },
}
_PAPERS_NAMES = {"mbf (1, 20), warm": "mbf"}
_SEEDS: dict[Scale, int] = {"quick": 2, "cpu": 5, "paper": 5}

Grids = dict[str, Sequence[Setting]]


def run(options: Options) -> Report:
  """Searches, trains from several seeds, times, and compares with Table 4."""
  names = _TASKS[options.scale]
  tasks = {name: problems.autoencoder(name, options) for name in names}
  optimizers = options.chosen(_optimizers(options.scale))
  search = comparison.Search(seeds=problems.SEARCH_SEEDS[options.scale])
  seeds = _SEEDS[options.scale]
  total = sum(
    comparison.work(task, optimizers, seeds, search) for task in tasks.values()
  )
  with comparison.session(options, "autoencoder", total) as session:
    outcomes = {
      name: comparison.compare(task, optimizers, seeds, session, search)
      for name, task in tasks.items()
    }
  return of_record(
    plain({name: comparison.record(results) for name, results in outcomes.items()})
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = {name: comparison.restored(kept) for name, kept in record.items()}
  figure = comparison.comparison_figure(outcomes, ["test loss"])
  return Report(_text(outcomes), dict(record), {"loss": figure})


def _text(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
  parts = []
  for name, results in outcomes.items():
    form = "{:.2f}" if name != "faces" else "{:.3f}"
    metrics = {"train loss": form, "test loss": form}
    parts += [f"### {name}", comparison.comparison_table(results, metrics)]
    parts += [_beside_the_papers(PAPER[name], results)]
  parts.append(
    "A setting is a learning rate and, where there is one, a damping; `*` marks a value"
    " at the edge of its grid. FACES and CURVES are reconstructions."
  )
  return "\n\n".join(parts)


def _beside_the_papers(
  paper: Mapping[str, float], results: Mapping[str, Outcome]
) -> str:
  """Final training losses relative to Adam's, here and in Table 4."""

  def relative(loss: float | None, adam: float) -> str:
    if loss is None:
      return ""
    return f"{100 * (loss / adam - 1):+.1f} %" if np.isfinite(loss) else "NaN"

  adam = results["adam"].runs.final("train loss").mean()
  adam_seconds = results["adam"].seconds * results["adam"].runs.at[-1]
  rows = []
  for name, outcome in results.items():
    in_time = comparison.at_equal_seconds(outcome, adam_seconds, "train loss").mean()
    printed = paper.get(_PAPERS_NAMES.get(name, name))
    rows.append(
      [
        name,
        relative(outcome.runs.final("train loss").mean(), adam),
        relative(in_time, adam),
        "" if printed is None else f"{printed:.2f}",
        relative(printed, paper["adam"]),
      ]
    )
  titles = ["optimizer", "against adam, steps", "against adam, seconds"]
  return table([*titles, "paper's loss", "paper's, against adam"], rows)


def _optimizers(scale: Scale) -> dict[str, Optimizer]:
  grids = {"quick": _quick, "cpu": _cpu, "paper": _paper}[scale]()
  return {name: OPTIMIZERS[name](grid) for name, grid in grids.items()}


def _quick() -> Grids:
  rates = product(learning_rate=[1e-3, 3e-3])
  damped = product(learning_rate=[1e-3], damping=[1e-2, 1e-1])
  return {"adam": rates, "mbf (1, 20), warm": damped}


def _cpu() -> Grids:
  """Grids around what wider and coarser ones found best and stable."""
  rates = product(learning_rate=[3e-3, 1e-2, 3e-2])
  return {
    "sgd": product(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2]),
    "adam": product(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    "shampoo": product(learning_rate=[1e-3, 3e-3, 1e-2], damping=[1e-3, 1e-2, 1e-1]),
    "kfac": product(learning_rate=[1e-3, 3e-3, 1e-2], damping=[1e-2, 3e-2, 1e-1, 3e-1]),
    "muon": product(learning_rate=[3e-3, 1e-2, 3e-2, 1e-1]),
    "mbf (1, 20), warm": product(
      learning_rate=[3e-6, 1e-5, 3e-5, 1e-4], damping=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    ),
    "mbf": product(learning_rate=[3e-5, 1e-4, 3e-4], damping=[3e-4, 1e-3, 3e-3]),
    "mbf_adam": rates,
  }


def _paper() -> Grids:
  """Table 5, and Adam's rates for the optimizers that it does not have."""
  tenths = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
  mbf = product(learning_rate=[1e-2 * rate for rate in tenths], damping=tenths)
  return {
    "sgd": product(learning_rate=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    "adam": product(learning_rate=tenths, eps=[1e-8, 1e-4, 1e-2]),
    "shampoo": product(
      learning_rate=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
      damping=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    ),
    "kfac": product(
      learning_rate=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
      damping=[1e-2, 3e-2, 1e-1, 3e-1, 1, 3, 10],
    ),
    "muon": product(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    "mbf (1, 20), warm": mbf,
    "mbf": product(learning_rate=[10 * r for r in tenths[:-1]], damping=tenths),
    "mbf_adam": product(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
  }
