"""Figures 8 and 18, Tables 4 to 6: autoencoders, every optimizer at its best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper import comparison, problems, rivals, tables
from benchmarks.paper.comparison import Outcome
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.optimizers import product
from benchmarks.paper.report import table
from benchmarks.paper.search import Search

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
_PAPERS_NAMES = {f"{name} (1, 20), warm": name for name in ("mbf", "kfac", "shampoo")}
_SEEDS: dict[Scale, int] = {"quick": 2, "cpu": 5, "paper": 5}

_STARTS: dict[str, Setting] = {
  "sgd": {"learning_rate": 1e-2, "momentum": 0.9},
  "adam": {"learning_rate": 3e-3, "b2": 0.999},
  "nadam": {"learning_rate": 3e-3, "b2": 0.999},
  "muon": {"learning_rate": 3e-2, "other_learning_rate": 1e-2},
  "soap": {"learning_rate": 1e-2, "b2": 0.95},
  "shampoo (1, 2)": {"learning_rate": 3e-3, "damping": 1e-2},
  "shampoo (1, 20), warm": {"learning_rate": 3e-3, "damping": 1e-2},
  "shampoo on adam": {"learning_rate": 3e-3, "damping": 1e-4},
  "kfac (1, 2)": {"ratio": 0.03, "damping": 0.1},
  "kfac (1, 20), warm": {"ratio": 0.03, "damping": 0.1},
  "kfac on adam": {"learning_rate": 1e-2, "damping": 1e-2},
  "mbf (1, 20), warm": {"ratio": 0.03, "damping": 1e-3},
  "mbf": {"ratio": 0.3, "damping": 3e-4},
  "mbf_adam": {"learning_rate": 1e-2, "b2": 0.999},
}
"""Where each method's search begins."""

Grids = dict[str, Sequence[Setting]]


def run(options: Options) -> Report:
  """Searches, trains from several seeds, times, and compares with Table 4."""
  names = _TASKS[options.scale]
  tasks = {name: problems.autoencoder(name, options) for name in names}
  optimizers = dict.fromkeys(tasks, _optimizers(options.scale))
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale])
  seeds = _SEEDS[options.scale]
  return of_record(
    comparison.experiment(
      options, "autoencoder", tasks, optimizers, seeds, search, needed=("adam",)
    )
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  figures = {
    "loss": tables.comparison_figure(outcomes, ["test loss"]),
    "exponents": tables.exponents_figure(outcomes),
  }
  return Report(_text(outcomes), dict(record), figures)


def _text(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
  parts = []
  for name, results in outcomes.items():
    form = "{:.2f}" if name != "faces" else "{:.3f}"
    metrics = {"train loss": form, "test loss": form}
    parts += [f"### {name}", tables.comparison_section(results, metrics)]
    parts += [_beside_the_papers(PAPER[name], results)]
  parts += [tables.protocol(outcomes), "FACES and CURVES are reconstructions."]
  return "\n\n".join(parts)


def _beside_the_papers(
  paper: Mapping[str, float], results: Mapping[str, Outcome]
) -> str:
  """Final training losses relative to Adam's, here and in Table 4."""

  def relative(loss: float | None, adam: float) -> str:
    if loss is None:
      return ""
    return f"{100 * (loss / adam - 1):+.1f} %" if np.isfinite(loss) else "NaN"

  adam = results["adam"].at_the_end("train loss").mean()
  seconds = tables.shortest(results)
  rows = []
  for name, outcome in results.items():
    in_time = outcome.after_seconds(seconds, "train loss").mean()
    printed = paper.get(_PAPERS_NAMES.get(name, name))
    rows.append(
      [
        name,
        relative(outcome.at_the_end("train loss").mean(), adam),
        relative(in_time, adam),
        "" if printed is None else f"{printed:.2f}",
        relative(printed, paper["adam"]),
      ]
    )
  titles = ["optimizer", "against adam, steps", "against adam, seconds"]
  return table([*titles, "paper's loss", "paper's, against adam"], rows)


def _optimizers(scale: Scale) -> dict[str, Optimizer]:
  grids = {"quick": _quick, "cpu": _cpu, "paper": _paper}[scale]()
  return {
    name: rivals.optimizer(name, grid, widened=scale == "cpu")
    for name, grid in grids.items()
  }


def _quick() -> Grids:
  return {name: [_STARTS[name]] for name in ("adam", "mbf (1, 20), warm")}


def _cpu() -> Grids:
  return {name: rivals.around(start) for name, start in _STARTS.items()}


def _paper() -> Grids:
  """Table 5, and Adam's rates for the optimizers that it does not have."""
  tenths = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
  mbf = product(learning_rate=[1e-2 * rate for rate in tenths], damping=tenths)
  return {
    "sgd": product(learning_rate=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    "adam": product(learning_rate=tenths, eps=[1e-8, 1e-4, 1e-2]),
    "shampoo (1, 20), warm": product(
      learning_rate=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
      damping=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    ),
    "kfac (1, 20), warm": product(
      learning_rate=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
      damping=[1e-2, 3e-2, 1e-1, 3e-1, 1, 3, 10],
    ),
    "muon": product(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    "mbf (1, 20), warm": mbf,
    "mbf": product(learning_rate=[10 * r for r in tenths[:-1]], damping=tenths),
    "mbf_adam": product(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
  }
