"""Figures 9 and 10: statistics at the data's labels against labels of the model."""

from benchmarks.paper import comparison, problems
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.methods import Setting
from benchmarks.paper.optimizers import OPTIMIZERS, product

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
  optimizers = {
    name: {m: OPTIMIZERS[m](_grid(options.scale, name)) for m in _METHODS}
    for name in tasks
  }
  seeds = problems.SEEDS[options.scale]
  search = comparison.Search(seeds=problems.SEARCH_SEEDS[options.scale])
  total = sum(comparison.work(tasks[n], optimizers[n], seeds, search) for n in tasks)
  with comparison.session(options, "mbf_true", total) as session:
    outcomes = {
      name: comparison.compare(task, optimizers[name], seeds, session, search)
      for name, task in tasks.items()
    }
  parts = []
  for name, results in outcomes.items():
    metrics = {"train loss": "{:.3f}", "test loss": "{:.3f}"}
    if name == "convnet":
      metrics["test accuracy"] = "{:.3f}"
    table = comparison.comparison_table(results, metrics, budget="mbf")
    parts.append(f"### {name}\n\n{table}")
  record = {name: comparison.record(results) for name, results in outcomes.items()}
  figure = comparison.comparison_figure(outcomes, ["test loss"])
  return Report("\n\n".join(parts), record, {"loss": figure})


def _grid(scale: Scale, name: str) -> list[Setting]:
  """The same for both methods."""
  if scale == "quick":
    return product(learning_rate=[1e-3], damping=[1e-2, 1e-1])
  if scale == "cpu":
    smaller = 0.1 if name == "faces" else 1
    return product(
      learning_rate=[smaller * rate for rate in (3e-5, 1e-4, 3e-4, 1e-3)],
      damping=[3e-4, 3e-3, 3e-2],
    )
  return product(
    learning_rate=[1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3],
    damping=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
  )
