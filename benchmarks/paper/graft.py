"""Beyond the paper: what of mbf_adam it is that helps.

Other directions at Adam's length as controls, the paper's inverse among them; and what
damping, exponent, periods and single layers do.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.figure

import mbf_optax
from benchmarks.paper import comparison, problems, report, rivals, tables, vision
from benchmarks.paper.comparison import Session
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.report import plain
from benchmarks.paper.search import Search
from benchmarks.paper.tasks import Task

PERIODS = ((1, 1), (1, 10), (1, 20), (5, 20), (5, 50), (10, 100))
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DECAY = {"resnet": 0.1}  # decoupled weight decay, where there is any
STARTS: dict[str, Setting] = {
  "adam": {"learning_rate": 3e-3, "b2": 0.999},
  "momentum on adam": {"learning_rate": 3e-3, "momentum": 0.9},
  "mbf on adam": {"learning_rate": 3e-3, "damping": 0.1},
  "mbf on adam, by block": {"learning_rate": 3e-3, "damping": 0.1},
  "mbf_adam": {"learning_rate": 1e-2, "b2": 0.999},
}
"""Where each method's search begins."""

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
  """Compares on every task, then varies ``mbf_adam`` at its best setting."""
  tasks = options.chosen_tasks(_tasks(options))
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale])
  compared = comparison.experiment(
    options, "graft", tasks, optimizers, seeds, search, needed=("adam", "mbf_adam")
  )
  total = sum(task.steps * _varied(n, options.scale) for n, task in tasks.items())
  variants = {}
  with comparison.session(options, "graft, varied", total) as session:
    for name, task in tasks.items():
      setting = compared[name]["mbf_adam"]["setting"]
      variants[name] = _vary(name, task, setting, options.scale, session)
  return of_record({"compared": compared, "variants": plain(variants)})


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes, variants = comparison.of_tasks(record["compared"]), record["variants"]
  parts = []
  for name, results in outcomes.items():
    metrics = {"train loss": "{:.3f}", "test loss": "{:.3f}"}
    if "test accuracy" in results["adam"].runs.metrics:
      metrics["test accuracy"] = "{:.3f}"
    section = tables.comparison_section(results, metrics)
    parts += [f"### {name}", section, _table(variants[name])]
  figures = {
    "loss": tables.comparison_figure(outcomes, ["test loss"]),
    "exponents": tables.exponents_figure(outcomes),
    "variants": _figure(variants),
  }
  return Report("\n\n".join([*parts, tables.protocol(outcomes)]), dict(record), figures)


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


def _optimizers(scale: Scale, task: str) -> dict[str, Optimizer]:
  """Adam, ``mbf_adam``, and other directions at Adam's length."""
  fixed = {"weight_decay": DECAY.get(task, 0.0)}
  found = {}
  for name, start in STARTS.items():
    settings = [start] if scale == "quick" else rivals.around(start)
    found[name] = rivals.optimizer(name, settings, scale != "quick", **fixed)
  return found


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
