"""Full, shared and low-rank dense layers: quality at equal steps and equal seconds.

``mbf_adam`` has no low-rank ones; it takes two sides instead.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import mbf_optax
from benchmarks.paper import comparison, problems, rivals, tables
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.search import Search

# A matrix for every neuron of the paper's autoencoders would take 18 GB; these widths
# leave room for it.
_NARROW: dict[Scale, tuple[int, ...]] = {
  "quick": (16, 4, 16),
  "cpu": (48, 24, 12, 24, 48),
  "paper": (100, 50, 30, 50, 100),
}
_ESTIMATORS = {
  "narrow": {
    "mbf": ("full", "shared", "low_rank"),
    "mbf_adam": ("full", "shared", "two_sided"),
  },
  "wide": {"mbf": ("shared", "low_rank"), "mbf_adam": ("shared", "two_sided")},
}
_STARTS: dict[str, Setting] = {
  "adam": {"learning_rate": 3e-3, "b2": 0.999},
  "mbf": {"ratio": 0.1, "damping": 1e-3},
  "mbf_adam": {"learning_rate": 1e-2, "b2": 0.999},
}


def run(options: Options) -> Report:
  """Compares the estimators on a narrow autoencoder, and two of them on a wide one."""
  hidden = {"narrow": _NARROW[options.scale], "wide": None}
  tasks = {
    name: dataclasses.replace(problems.autoencoder("mnist", options, widths), name=name)
    for name, widths in hidden.items()
  }
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale])
  return of_record(
    comparison.experiment(options, "low_rank", tasks, optimizers, seeds, search)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  metrics = {"train loss": "{:.2f}", "test loss": "{:.2f}"}
  figure = tables.comparison_figure(outcomes)
  text = tables.sections(outcomes, metrics, ["mbf shared", "mbf_adam shared"])
  return Report(text, dict(record), {"loss": figure})


def _optimizers(scale: Scale, task: str) -> dict[str, Optimizer]:
  def settings(name: str) -> list[Setting]:
    start = _STARTS[name]
    return [start] if scale == "quick" else rivals.around(start)

  widened = scale != "quick"
  found = {"adam": rivals.optimizer("adam", settings("adam"), widened)}
  for name, estimators in _ESTIMATORS[task].items():
    for dense in estimators:
      partition = mbf_optax.flax_partition(dense=dense)
      found[f"{name} {dense}"] = rivals.optimizer(
        name, settings(name), widened, partition=partition
      )
  return found
