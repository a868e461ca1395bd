"""Full, shared and low-rank dense layers: quality at equal steps and equal seconds.

``mbf_adam`` has no low-rank ones; it takes two sides instead.
"""

import dataclasses
import functools

import optax

import mbf_optax
from benchmarks.paper import comparison, problems
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.optimizers import product

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
_BUILDS = {"mbf": mbf_optax.mbf, "mbf_adam": mbf_optax.mbf_adam}


def run(options: Options) -> Report:
  """Compares the estimators on a narrow autoencoder, and two of them on a wide one."""
  hidden = {"narrow": _NARROW[options.scale], "wide": None}
  tasks = {
    name: dataclasses.replace(problems.autoencoder("mnist", options, widths), name=name)
    for name, widths in hidden.items()
  }
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  seeds = problems.SEEDS[options.scale]
  search = comparison.Search(seeds=problems.SEARCH_SEEDS[options.scale])
  total = sum(comparison.work(tasks[n], optimizers[n], seeds, search) for n in tasks)
  with comparison.session(options, "low_rank", total) as session:
    outcomes = {
      name: comparison.compare(task, optimizers[name], seeds, session, search)
      for name, task in tasks.items()
    }
  parts = []
  for name, results in outcomes.items():
    metrics = {"train loss": "{:.2f}", "test loss": "{:.2f}"}
    table = comparison.comparison_table(results, metrics)
    parts.append(f"### {name} autoencoder on MNIST\n\n{table}")
  record = {name: comparison.record(results) for name, results in outcomes.items()}
  figure = comparison.comparison_figure(outcomes)
  return Report("\n\n".join(parts), record, {"loss": figure})


def _optimizers(scale: Scale, task: str) -> dict[str, Optimizer]:
  damped, rates = _grids(scale)
  optimizers = {"adam": Optimizer(optax.adam, rates)}
  for name, settings in (("mbf", damped), ("mbf_adam", rates)):
    for dense in _ESTIMATORS[task][name]:
      partition = mbf_optax.flax_partition(dense=dense)
      build = functools.partial(_BUILDS[name], partition=partition)
      optimizers[f"{name} {dense}"] = Optimizer(build, settings)
  return optimizers


def _grids(scale: Scale) -> tuple[list[Setting], list[Setting]]:
  if scale == "quick":
    return (
      product(learning_rate=[1e-3], damping=[1e-2, 1e-1]),
      product(learning_rate=[3e-3]),
    )
  if scale == "cpu":
    return (
      product(learning_rate=[3e-5, 1e-4, 3e-4, 1e-3], damping=[1e-3, 3e-3, 1e-2]),
      product(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2]),
    )
  return (
    product(
      learning_rate=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3], damping=[3e-4, 1e-3, 3e-3, 1e-2]
    ),
    product(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2]),
  )
