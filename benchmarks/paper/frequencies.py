"""Figure 12: periods of statistics and inverses, cold and after a warm start.

Where does a stale inverse diverge, and what does a fresh one buy at equal steps and at
equal seconds? Every pair of periods is searched for settings of its own.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

import mbf_optax
from benchmarks.paper import comparison, problems, rivals, tables
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting, warm
from benchmarks.paper.search import Search
from benchmarks.paper.tasks import Task

PERIODS = ((1, 1), (1, 2), (1, 5), (1, 20), (10, 10), (10, 100))
REFERENCE = "(1, 2) cold"
STARTS: dict[str, Setting] = {
  "mnist": {"ratio": 0.3, "damping": 1e-3},
  "convnet": {"ratio": 0.3, "damping": 3e-4},
  "transformer": {"ratio": 1.0, "damping": 1e-5},
}
_STALE = 10
_STALE_STARTS: dict[str, Setting] = {"mnist": {"ratio": 0.01, "damping": 1e-2}}
"""For such a period and more: a search that begins where all diverges ends there."""
_TASKS: dict[Scale, tuple[str, ...]] = {
  "quick": ("mnist",),
  "cpu": tuple(STARTS),
  "paper": tuple(STARTS),
}
_COMMON = ("statistics", "inverse")


def run(options: Options) -> Report:
  """Searches, trains and times every pair of periods, cold and warm."""
  tasks = {name: _task(name, options) for name in _TASKS[options.scale]}
  grids = {name: optimizers(name, options.scale) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale])
  return of_record(
    comparison.experiment(options, "frequencies", tasks, grids, seeds, search)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  metrics = {"train loss": "{:.3f}", "test loss": "{:.3f}"}
  cold = {
    name: {key: o for key, o in found.items() if key.endswith("cold")}
    for name, found in outcomes.items()
  }
  text = tables.sections(outcomes, metrics, [REFERENCE])
  return Report(text, dict(record), {"loss": tables.comparison_figure(cold)})


def optimizers(task: str, scale: Scale) -> dict[str, Optimizer]:
  """``mbf`` at every pair of periods; all of them share what is compiled."""
  pairs, ladders = PERIODS, {name: rivals.LADDERS[name] for name in STARTS[task]}
  if scale == "quick":
    pairs, ladders = PERIODS[:2], {}
  found = {}
  for periods in pairs:
    fixed = dict(zip(_COMMON, periods, strict=True))
    start = STARTS[task]
    if fixed["inverse"] >= _STALE:
      start = _STALE_STARTS.get(task, start)
    settings = [{**s, **fixed} for s in (rivals.around(start) if ladders else [start])]
    like = functools.partial(
      Optimizer, _build, settings, common=_COMMON, ladders=ladders
    )
    found[f"{periods} cold"] = like()
    found[f"{periods} warm"] = like(prepare=warm)
  return found


@rivals.by_ratio
def _build(
  learning_rate: jax.Array, damping: jax.Array, statistics: int, inverse: int
) -> optax.GradientTransformation:
  return mbf_optax.mbf(
    learning_rate,
    damping,
    curvature_update_period=statistics,
    inverse_update_period=inverse,
  )


def _task(name: str, options: Options) -> Task:
  if name == "mnist":
    return problems.autoencoder(name, options)
  return {"convnet": problems.convnet, "transformer": problems.transformer}[name](
    options
  )
