"""Figure 11: a matrix for every convolution kernel against one for each layer."""

import functools

import mbf_optax
from benchmarks.paper import comparison, problems, vision
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.optimizers import product

_PARTITIONS = {
  "mbf": mbf_optax.flax_partition(),
  "mbf averaged": mbf_optax.flax_partition(overrides=[(r"Conv_\d+/kernel", "shared")]),
}


def run(options: Options) -> Report:
  """Tunes both on the same grid, trains from several seeds and times the steps."""
  tasks = vision.tasks(options)
  seeds = problems.SEEDS[options.scale]
  optimizers = {name: _optimizers(options.scale, name) for name in tasks}
  search = comparison.Search("test accuracy", largest=True)
  total = sum(comparison.work(tasks[n], optimizers[n], seeds, search) for n in tasks)
  with comparison.session(options, "conv_average", total) as session:
    outcomes = {
      name: comparison.compare(task, optimizers[name], seeds, session, search)
      for name, task in tasks.items()
    }
  metrics = {"test accuracy": "{:.3f}", "test loss": "{:.3f}", "train loss": "{:.3f}"}
  parts = []
  for name, results in outcomes.items():
    text = comparison.comparison_table(results, metrics, budget="mbf")
    parts.append(f"### {name}\n\n{text}")
  record = {name: comparison.record(results) for name, results in outcomes.items()}
  figure = comparison.comparison_figure(outcomes, ["test accuracy"])
  return Report("\n\n".join(parts), record, {"loss": figure})


def _optimizers(scale: Scale, network: str) -> dict[str, Optimizer]:
  length = vision.lengths(network, scale).mini_block
  return {
    name: Optimizer(
      vision.decaying(
        functools.partial(mbf_optax.mbf, partition=partition), length.decay_every
      ),
      _grid(scale),
      steps=length.steps,
    )
    for name, partition in _PARTITIONS.items()
  }


def _grid(scale: Scale) -> list[Setting]:
  if scale == "quick":
    return product(learning_rate=[1e-3], weight_decay=[0.3])
  if scale == "cpu":
    return product(
      learning_rate=[1e-5, 3e-5, 1e-4, 3e-4],
      damping=[3e-5, 1e-4, 3e-4, 1e-3],
      weight_decay=[0.3],
    )
  return product(
    learning_rate=[1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
    weight_decay=[1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0],
  )
