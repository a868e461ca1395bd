"""Figure 11: a matrix for every convolution kernel against one for each layer."""

import functools
from collections.abc import Mapping
from typing import Any

import mbf_optax
from benchmarks.paper import comparison, problems, rivals, tables, vision
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.search import Search

_PARTITIONS = {
  "mbf": mbf_optax.flax_partition(),
  "mbf averaged": mbf_optax.flax_partition(overrides=[(r"Conv_\d+/kernel", "shared")]),
}


def run(options: Options) -> Report:
  """Searches and trains both from several seeds, and times the steps."""
  tasks = vision.tasks(options)
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = Search("valid accuracy", True, problems.SEARCH_SEEDS[options.scale])
  return of_record(
    comparison.experiment(options, "conv_average", tasks, optimizers, seeds, search)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  metrics = {"test accuracy": "{:.3f}", "test loss": "{:.3f}", "train loss": "{:.3f}"}
  figure = tables.comparison_figure(outcomes, ["test accuracy"])
  text = tables.sections(outcomes, metrics, ["mbf"])
  return Report(text, dict(record), {"loss": figure})


def _optimizers(scale: Scale, network: str) -> dict[str, Optimizer]:
  start = {"ratio": 1.0, "damping": 3e-5, "shrinkage": 3e-3}
  length = vision.lengths(network, scale).mini_block
  return {
    name: rivals.optimizer(
      "mbf",
      [start] if scale == "quick" else rivals.around(start),
      widened=scale != "quick",
      scheduled=functools.partial(vision.decaying, every=length.decay_every),
      steps=length.steps,
      partition=partition,
    )
    for name, partition in _PARTITIONS.items()
  }
