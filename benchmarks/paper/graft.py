"""Beyond the paper: mbf_adam against Adam and against other directions at its length.

Every optimizer at its own best rate, ``mbf_adam`` at Adam's too; other directions at
Adam's length as controls, the paper's inverse among them; and what damping, exponent,
periods and single layers do.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.paper import comparison, problems, report, vision
from benchmarks.paper.comparison import Outcome, Session
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting, empirical
from benchmarks.paper.optimizers import product, with_factors
from benchmarks.paper.tasks import Task

PERIODS = ((1, 1), (1, 10), (1, 20), (5, 20), (5, 50), (10, 100))
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DECAY = {"resnet": 0.1}  # decoupled weight decay, where there is any

# What is read element by element, and so moves exactly as under Adam.
_WITHOUT: dict[str, dict[str, str]] = {
  "mnist": {"first half": r"Dense_[0-3]/", "second half": r"Dense_[4-7]/"},
  "convnet": {"convolutions": r"Conv_\d+/", "dense layers": r"Dense_\d+/"},
  "resnet": {"convolutions": r"Conv_\d+/", "dense layers": r"Dense_\d+/"},
  "transformer": {
    "attention": r"MultiHeadDotProductAttention",
    "perceptrons": r"TransformerBlock_\d+/Dense",
    "head": r"^params/Dense|^Dense",
  },
}


def run(options: Options) -> Report:
  """Compares on every task, then varies ``mbf_adam`` at its best rate."""
  tasks = _tasks(options)
  optimizers = {n: _optimizers(options.scale, DECAY.get(n, 0.0)) for n in tasks}
  seeds = problems.SEEDS[options.scale]
  total = sum(comparison.work(tasks[n], optimizers[n], seeds) for n in tasks)
  total += sum(tasks[n].steps * (seeds + _varied(n, options.scale)) for n in tasks)
  outcomes, at_adams, variants = {}, {}, {}
  with comparison.session(options, "graft", total) as session:
    for name, task in tasks.items():
      results = comparison.compare(task, optimizers[name], seeds, session)
      outcomes[name] = results
      at_adams[name] = session.train(
        "mbf_adam at Adam's rate",
        task,
        optimizers[name]["mbf_adam"],
        settings=[results["adam"].setting],
        seeds=range(1, 1 + seeds),
      )
      setting = results["mbf_adam"].setting
      variants[name] = _vary(name, task, setting, options.scale, session)
  parts = []
  for name, results in outcomes.items():
    parts += [f"### {name}", _comparison(results, at_adams[name].metrics)]
    parts += [_table(variants[name])]
  record = {
    name: {
      "comparison": comparison.record(results),
      "mbf_adam at Adam's rate": at_adams[name].metrics,
      "variants": variants[name],
    }
    for name, results in outcomes.items()
  }
  figures = {
    "loss": comparison.comparison_figure(outcomes, ["test loss"]),
    "variants": _figure(variants),
  }
  return Report("\n\n".join(parts), record, figures)


def _tasks(options: Options) -> dict[str, Task]:
  tasks = {
    "mnist": functools.partial(problems.autoencoder, "mnist"),
    "convnet": problems.convnet,
    "resnet": functools.partial(vision.task, "resnet"),
    "transformer": problems.transformer,
  }
  if options.scale == "quick":
    tasks = {"convnet": problems.convnet}
  return {name: task(options) for name, task in tasks.items()}


def _optimizers(scale: Scale, decay: float) -> dict[str, Optimizer]:
  rates = {
    "quick": [1e-3, 3e-3],
    "cpu": [1e-3, 3e-3, 1e-2, 3e-2],
    "paper": [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2],
  }[scale]

  def optimizer(
    build: Callable[..., optax.GradientTransformation],
    gradient: Any = empirical,
    **grid: Sequence[float],
  ) -> Optimizer:
    settings = product(**({"learning_rate": rates} | grid))
    return Optimizer(functools.partial(build, weight_decay=decay), settings, gradient)

  found = {
    "adam": optimizer(optax.adamw),
    "momentum on adam": optimizer(baselines.momentum_adam),
    "mbf_adam": optimizer(mbf_optax.mbf_adam),
  }
  if scale == "quick":
    return found
  return found | {
    # The periods are mbf_adam's: statistics at every step, an inverse at every tenth.
    "mbf on adam": optimizer(
      functools.partial(baselines.mbf_on_adam, inverse_update_period=10)
    ),
    "mbf on adam, by block": optimizer(
      functools.partial(
        baselines.mbf_on_adam, lengths="block", inverse_update_period=10
      )
    ),
    # Larger dampings, 1e-2 and 0.1, were worse wherever they were tried.
    "shampoo on adam": optimizer(
      functools.partial(baselines.shampoo_adam, inverse_update_period=10),
      damping=[1e-4],
    ),
    "kfac on adam": optimizer(
      functools.partial(baselines.kfac_adam, split="trace", inverse_update_period=10),
      with_factors,
      damping=[1e-2],
    ),
    "soap": optimizer(baselines.soap),
    "muon": optimizer(baselines.muon, learning_rate=[3 * rate for rate in rates]),
  }


def _comparison(
  results: Mapping[str, Outcome], at_adams: Mapping[str, np.ndarray]
) -> str:
  metrics = {"train loss": "{:.3f}", "test loss": "{:.3f}"}
  if "test accuracy" in at_adams:
    metrics["test accuracy"] = "{:.3f}"
  lines = [comparison.comparison_table(results, metrics)]
  rate = results["adam"].setting["learning_rate"]
  values = (
    f"{metric} {report.spread(at_adams[metric][0, :, -1], form)}"
    for metric, form in metrics.items()
  )
  return "\n\n".join(
    [*lines, f"`mbf_adam` at Adam's rate {rate:g}: {', '.join(values)}."]
  )


class _Variants(NamedTuple):
  """Values to vary: of hyperparameters by name, and pairs of periods."""

  values: dict[str, tuple[float, ...]]
  periods: tuple[tuple[int, int], ...]


def _variants(scale: Scale) -> _Variants:
  if scale == "quick":
    return _Variants({"damping": DAMPINGS[:2]}, PERIODS[:1])
  return _Variants({"damping": DAMPINGS, "exponent": EXPONENTS}, PERIODS)


def _varied(name: str, scale: Scale) -> int:
  """How many runs :func:`_vary` takes."""
  values, periods = _variants(scale)
  return len(_WITHOUT[name]) + sum(map(len, values.values())) + len(periods)


def _vary(
  name: str, task: Task, setting: Setting, scale: Scale, session: Session
) -> dict[str, dict[str, float]]:
  """Training losses of one seed, by what is varied and its value."""
  build = functools.partial(mbf_optax.mbf_adam, weight_decay=DECAY.get(name, 0.0))
  varied, periods = _variants(scale)
  found = {}
  for kind, values in varied.items():
    optimizer = Optimizer(build, [{**setting, kind: value} for value in values])
    runs = session.train(kind, task, optimizer, seeds=[1], points=1)
    losses = map(float, runs.final("train loss")[:, 0])
    found[kind] = dict(zip(map(str, values), losses, strict=True))

  names = ("curvature_update_period", "inverse_update_period")
  periodic = Optimizer(build, [setting], common=names)
  found["T1, T2"] = {}
  for pair in periods:
    settings = [{**setting, **dict(zip(names, pair, strict=True))}]
    runs = session.train(
      f"periods {pair}", task, periodic, settings=settings, seeds=[1], points=1
    )
    found["T1, T2"][str(pair)] = float(runs.final("train loss")[0, 0])

  found["left to Adam"] = {}
  for label, pattern in _WITHOUT[name].items():
    partition = mbf_optax.flax_partition(overrides=[(pattern, "rms")])
    optimizer = Optimizer(functools.partial(build, partition=partition), [setting])
    runs = session.train(f"without {label}", task, optimizer, seeds=[1], points=1)
    found["left to Adam"][label] = float(runs.final("train loss")[0, 0])
  return found


def _table(variants: Mapping[str, Mapping[str, float]]) -> str:
  rows = [
    [varied, ", ".join(f"{value}: {loss:.3f}" for value, loss in losses.items())]
    for varied, losses in variants.items()
  ]
  return report.table(("varied, one seed", "training loss"), rows)


def _figure(variants: Mapping[str, Any]) -> matplotlib.figure.Figure:
  """Training loss by what is varied, a row for each task."""
  kinds = list(next(iter(variants.values())))
  figure, grid = report.axes(len(variants), len(kinds), width=4.2)
  for row, (task, found) in zip(grid, variants.items(), strict=True):
    for ax, kind in zip(row, kinds, strict=True):
      ax.plot(list(found[kind]), list(found[kind].values()), "o-")
      ax.set(xlabel=kind, ylabel=f"{task}: training loss")
  return figure
