"""Figures 7 and 17, Tables 7 and 8: image classifiers, schedules and weight decay."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.paper import comparison, problems, rivals, tables, vision
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.optimizers import product
from benchmarks.paper.report import table
from benchmarks.paper.search import Search


class Published(NamedTuple):
  """A cell of Table 8.

  Attributes:
    learning_rate: the best of the paper's grid.
    weight_decay: likewise.
    accuracy: on the validation set, in percent.
  """

  learning_rate: float
  weight_decay: float
  accuracy: float


_TABLE_8 = {
  "mbf (10, 100), warm": ((1e-4, 3.0, 93.42), (3e-5, 10.0, 74.80), (1e-3, 0.3, 96.59)),
  "kfac, convolutions (10, 100), warm": (
    (3e-3, 0.1, 93.02),
    (1e-3, 0.3, 74.38),
    (3e-3, 0.1, 96.37),
  ),
  "shampoo (10, 100), warm": (
    (1e-2, 0.1, 92.97),
    (1e-3, 0.3, 73.37),
    (3e-3, 0.1, 96.15),
  ),
  "adam": ((3e-3, 0.1, 93.34), (3e-5, 10.0, 72.95), (3e-4, 1.0, 96.34)),
  "sgd": ((0.1, 1e-2, 93.23), (3e-2, 1e-2, 73.99), (3e-2, 1e-2, 96.63)),
}
PAPER = {
  network: {name: Published(*cells[column]) for name, cells in _TABLE_8.items()}
  for column, network in enumerate(("resnet", "vgg16", "vgg11"))
}
"""Table 8."""
SEEDS = 5
METRICS = {"test accuracy": "{:.3f}", "test loss": "{:.3f}", "train loss": "{:.3f}"}

# How long a method trains at the paper's scale.
_KINDS = {
  "shampoo (1, 2)": "kronecker",
  "shampoo (10, 100), warm": "kronecker",
  "kfac, convolutions (1, 2)": "kronecker",
  "kfac, convolutions (10, 100), warm": "kronecker",
  "mbf (10, 100), warm": "mini_block",
  "mbf": "mini_block",
}
_STARTS: dict[str, Setting] = {
  "sgd": {"learning_rate": 0.1, "momentum": 0.9, "shrinkage": 1e-3},
  "adam": {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3},
  "nadam": {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3},
  "muon": {"learning_rate": 3e-2, "other_learning_rate": 1e-2, "shrinkage": 3e-3},
  "soap": {"learning_rate": 1e-2, "b2": 0.95, "shrinkage": 1e-3},
  "shampoo (1, 2)": {"learning_rate": 1e-2, "damping": 1e-3, "shrinkage": 1e-3},
  "shampoo (10, 100), warm": {
    "learning_rate": 1e-2,
    "damping": 1e-3,
    "shrinkage": 1e-3,
  },
  "shampoo on adam": {"learning_rate": 1e-2, "damping": 1e-4, "shrinkage": 1e-3},
  "kfac, convolutions (1, 2)": {"ratio": 1.0, "damping": 1e-2, "shrinkage": 1e-3},
  "kfac, convolutions (10, 100), warm": {
    "ratio": 1.0,
    "damping": 1e-2,
    "shrinkage": 1e-3,
  },
  "mbf (10, 100), warm": {"ratio": 0.3, "damping": 3e-4, "shrinkage": 3e-3},
  "mbf": {"ratio": 1.0, "damping": 3e-5, "shrinkage": 3e-3},
  **{
    name: {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3}
    for name in (
      "mbf_adam, by kernel",
      "mbf_adam, nesterov, by kernel",
      "mbf_adam",
      "mbf_adam, nesterov",
    )
  },
}


def run(options: Options) -> Report:
  """Searches by held-out accuracy, trains from several seeds, times the steps."""
  tasks = vision.tasks(options)
  optimizers = {
    name: _optimizers(
      options.scale,
      name,
      published(name) if options.published else _GRIDS[options.scale](),
    )
    for name in tasks
  }
  seeds = problems.SEARCH_SEEDS[options.scale]
  search = Search("valid accuracy", largest=True, seeds=seeds)
  return of_record(
    comparison.experiment(options, "cnn", tasks, optimizers, SEEDS, search)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  titles = ("Table 8, accuracy in %", *PAPER["resnet"])
  rows = [
    [name, *(found.accuracy for found in values.values())]
    for name, values in PAPER.items()
  ]
  compared = ("mbf_adam, nesterov", "mbf_adam", "mbf")
  tested = tables.sections(outcomes, METRICS, compared)
  parts = [tested, "### The paper", table(titles, rows)]
  figures = {
    "loss": tables.comparison_figure(outcomes, ["test accuracy"]),
    "exponents": tables.exponents_figure(outcomes),
  }
  return Report("\n\n".join(parts), dict(record), figures)


def _optimizers(
  scale: Scale, network: str, grids: Mapping[str, list[Setting]]
) -> dict[str, Optimizer]:
  lengths, found = vision.lengths(network, scale), {}
  for name, grid in grids.items():
    length = getattr(lengths, _KINDS.get(name, "first_order"))
    found[name] = rivals.optimizer(
      name,
      grid,
      widened=scale == "cpu",
      scheduled=functools.partial(vision.decaying, every=length.decay_every),
      steps=length.steps,
      **({"head": vision.HEADS[network]} if name == "muon" else {}),
    )
  return found


def published(network: str) -> dict[str, list[Setting]]:
  """Table 8's settings, and Adam's for ``mbf_adam``, which takes its place.

  Of the paper's scale; ``mbf_adam`` has Adam's rate and decay, unsearched.
  """
  found = {
    name: [{"learning_rate": best.learning_rate, "weight_decay": best.weight_decay}]
    for name, best in PAPER[network].items()
  }
  return found | dict.fromkeys(("mbf_adam", "mbf_adam, by kernel"), found["adam"])


def _quick() -> dict[str, list[Setting]]:
  return {name: [_STARTS[name]] for name in ("adam", "mbf")}


def _cpu() -> dict[str, list[Setting]]:
  return {name: rivals.around(start) for name, start in _STARTS.items()}


def _paper() -> dict[str, list[Setting]]:
  """Table 7, and Adam's values for the optimizers that it does not have."""
  decays = [1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
  tenths = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1]
  adams = product(learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-1]], weight_decay=decays)
  return {
    "sgd": product(learning_rate=[*tenths, 0.3, 1.0], weight_decay=decays),
    "adam": adams,
    "muon": product(learning_rate=tenths, weight_decay=decays),
    "shampoo (10, 100), warm": product(learning_rate=tenths, weight_decay=decays),
    "kfac, convolutions (10, 100), warm": product(
      learning_rate=[3e-6, 1e-5, *tenths[:-1]], weight_decay=decays
    ),
    "mbf (10, 100), warm": product(
      learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-3]], weight_decay=decays
    ),
    "mbf": product(learning_rate=[1e-6, 3e-6, 1e-5, *tenths[:-3]], weight_decay=decays),
    "mbf_adam": adams,
  }


_GRIDS = {"quick": _quick, "cpu": _cpu, "paper": _paper}
