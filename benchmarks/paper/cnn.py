"""Figures 7 and 17, Tables 7 and 8: image classifiers, schedules and weight decay."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.baselines import common
from benchmarks.paper import comparison, problems, vision
from benchmarks.paper.comparison import Outcome, Search
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting, empirical, warm
from benchmarks.paper.optimizers import (
  product,
  warm_factors,
  warm_moments,
  with_factors,
)
from benchmarks.paper.report import plain, table

# Table 8: accuracy on the validation set, in percent.
PAPER = {
  "resnet": {
    "mbf": 93.42,
    "kfac": 93.02,
    "shampoo": 92.97,
    "adam": 93.34,
    "sgd": 93.23,
  },
  "vgg16": {"mbf": 74.80, "kfac": 74.38, "shampoo": 73.37, "adam": 72.95, "sgd": 73.99},
  "vgg11": {"mbf": 96.59, "kfac": 96.37, "shampoo": 96.15, "adam": 96.34, "sgd": 96.63},
}
PERIODS = {"inverse_update_period": 100}  # as in the paper


def _sgd(
  learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
  return common.descend(optax.trace(0.9), learning_rate, weight_decay)


_BUILDS: dict[str, tuple[Callable, str]] = {
  "sgd": (_sgd, "first_order"),
  "adam": (optax.adamw, "first_order"),
  "muon": (baselines.muon, "first_order"),
  "shampoo": (
    functools.partial(baselines.shampoo, statistics_update_period=10, **PERIODS),
    "kronecker",
  ),
  "kfac": (
    functools.partial(baselines.kfac, split="none", factor_update_period=10, **PERIODS),
    "kronecker",
  ),
  "mbf (10, 100), warm": (
    functools.partial(mbf_optax.mbf, curvature_update_period=10, **PERIODS),
    "mini_block",
  ),
  "mbf": (mbf_optax.mbf, "mini_block"),
  "mbf_adam": (mbf_optax.mbf_adam, "first_order"),
  "mbf_adam (1, 2)": (
    functools.partial(
      mbf_optax.mbf_adam, curvature_update_period=1, inverse_update_period=2
    ),
    "first_order",
  ),
}

_BY_ACCURACY = Search("test accuracy", largest=True)
# Accuracies differ by less than the seeds do, so that one seed chooses among the best
# by luck. The paper has one training of each setting.
_SEARCHES: dict[Scale, Search] = {
  "quick": _BY_ACCURACY,
  "cpu": _BY_ACCURACY._replace(finalists=2, final_seeds=2),
  "paper": _BY_ACCURACY,
}

_WARM = {"shampoo": warm_moments, "kfac": warm_factors, "mbf (10, 100), warm": warm}


def run(options: Options) -> Report:
  """Searches by held-out accuracy, trains from several seeds, times the steps."""
  tasks = vision.tasks(options)
  optimizers = {
    name: options.chosen(_optimizers(options.scale, name)) for name in tasks
  }
  seeds = problems.SEEDS[options.scale]
  search = _SEARCHES[options.scale]
  total = sum(comparison.work(tasks[n], optimizers[n], seeds, search) for n in tasks)
  with comparison.session(options, "cnn", total) as session:
    outcomes = {
      name: comparison.compare(task, optimizers[name], seeds, session, search)
      for name, task in tasks.items()
    }
  return of_record(
    plain({name: comparison.record(results) for name, results in outcomes.items()})
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = {name: comparison.restored(kept) for name, kept in record.items()}
  figure = comparison.comparison_figure(outcomes, ["test accuracy"])
  return Report(_text(outcomes), dict(record), {"loss": figure})


def _text(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
  metrics = {"test accuracy": "{:.3f}", "test loss": "{:.3f}", "train loss": "{:.3f}"}
  parts = []
  for name, results in outcomes.items():
    parts += [f"### {name}", comparison.comparison_table(results, metrics)]
  titles = ("Table 8, accuracy in %", *PAPER["resnet"])
  rows = [[name, *values.values()] for name, values in PAPER.items()]
  return "\n\n".join([*parts, "### The paper", table(titles, rows)])


def _optimizers(scale: Scale, network: str) -> dict[str, Optimizer]:
  grids = {"quick": _quick, "cpu": _cpu, "paper": _paper}[scale]()
  optimizers = {}
  for name, grid in grids.items():
    build, kind = _BUILDS[name]
    length = getattr(vision.lengths(network, scale), kind)
    optimizers[name] = Optimizer(
      vision.decaying(build, length.decay_every),
      grid,
      gradient=with_factors if name == "kfac" else empirical,
      prepare=_WARM.get(name),
      steps=length.steps,
    )
  return optimizers


def _quick() -> dict[str, list[Setting]]:
  rates = product(learning_rate=[1e-3, 3e-3], weight_decay=[0.1])
  return {"adam": rates, "mbf": rates}


def _cpu() -> dict[str, list[Setting]]:
  """Rates, decays, and dampings of what divides by a matrix that it damps absolutely.

  The decay of the weights is multiplied by the rate, so methods of small rates have
  larger ones.
  """
  larger = product(learning_rate=[1e-2, 3e-2, 0.1], weight_decay=[0.01, 0.1])
  kronecker = [3e-3, 1e-2, 3e-2]
  mini_block = [3e-5, 1e-4, 3e-4]
  return {
    "sgd": product(learning_rate=[0.03, 0.1, 0.3], weight_decay=[1e-3, 1e-2]),
    "adam": product(learning_rate=[3e-3, 1e-2, 3e-2], weight_decay=[0.01, 0.1]),
    "muon": larger,
    "shampoo": product(
      learning_rate=kronecker, damping=[1e-4, 1e-3, 1e-2], weight_decay=[0.1]
    ),
    "kfac": product(
      learning_rate=kronecker, damping=[3e-3, 1e-2, 3e-2], weight_decay=[0.1]
    ),
    "mbf (10, 100), warm": product(
      learning_rate=mini_block, damping=[1e-4, 3e-4, 1e-3], weight_decay=[30]
    ),
    "mbf": product(
      learning_rate=mini_block, damping=[3e-5, 1e-4, 3e-4], weight_decay=[30]
    ),
    "mbf_adam": larger,
    "mbf_adam (1, 2)": larger,
  }


def _paper() -> dict[str, list[Setting]]:
  """Table 7, and Adam's values for the optimizers that it does not have."""
  decays = [1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
  tenths = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1]
  adams = product(learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-1]], weight_decay=decays)
  return {
    "sgd": product(learning_rate=[*tenths, 0.3, 1.0], weight_decay=decays),
    "adam": adams,
    "muon": product(learning_rate=tenths, weight_decay=decays),
    "shampoo": product(learning_rate=tenths, weight_decay=decays),
    "kfac": product(learning_rate=[3e-6, 1e-5, *tenths[:-1]], weight_decay=decays),
    "mbf (10, 100), warm": product(
      learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-3]], weight_decay=decays
    ),
    "mbf": product(learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-3]], weight_decay=decays),
    "mbf_adam": adams,
  }
