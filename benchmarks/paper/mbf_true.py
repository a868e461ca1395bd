"""Figures 9 and 10: statistics at the data's labels against labels of the model."""

from collections.abc import Mapping
from typing import Any

from benchmarks.paper import comparison, problems, rivals, tables
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.search import Search

_METHODS = ("mbf", "mbf_true")
_TASKS: dict[Scale, tuple[str, ...]] = {
  "quick": ("curves",),
  "cpu": ("mnist", "faces", "curves", "convnet"),
  "paper": ("mnist", "faces", "curves", "convnet"),
}


def run(options: Options) -> Report:
  """Tunes both on the same grid, trains from several seeds and times the steps."""
  tasks = {
    name: problems.convnet(options)
    if name == "convnet"
    else problems.autoencoder(name, options)
    for name in _TASKS[options.scale]
  }
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale])
  return of_record(
    comparison.experiment(options, "mbf_true", tasks, optimizers, seeds, search)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  metrics = {"train loss": "{:.3f}", "test loss": "{:.3f}", "test accuracy": "{:.3f}"}
  figure = tables.comparison_figure(outcomes, ["test loss"])
  text = tables.sections(outcomes, metrics, ["mbf"])
  return Report(text, dict(record), {"loss": figure})


def _optimizers(scale: Scale, task: str) -> dict[str, Optimizer]:
  """A search that begins where all diverges ends there: MBF-True starts lower."""
  start = {"ratio": 0.03 if task == "faces" else 0.3, "damping": 3e-3}
  starts = dict.fromkeys(_METHODS, start)
  if task in ("mnist", "curves"):
    starts["mbf_true"] = {**start, "ratio": 0.01}
  if scale == "quick":
    return {name: rivals.optimizer(name, [starts[name]], False) for name in _METHODS}
  return {
    name: rivals.optimizer(name, rivals.around(starts[name])) for name in _METHODS
  }
