"""Figure 6: how close are the methods' directions to that of the whole Fisher blocks?

On the path of BDF, which inverts the empirical Fisher matrix of every layer, all other
methods are given the same gradients, and the cosine of their direction with BDF's is
taken layer by layer. The damping of every method decides much, so that it is searched:
BDF's for the lowest training loss, the others' for the largest cosine beside the
paper's own value.
"""

import functools
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optax

import mbf_optax
from benchmarks.baselines import scale_by_bdf, scale_by_kfac, scale_by_shampoo
from benchmarks.paper import tasks
from benchmarks.paper.comparison import session
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.heatmaps import small_data
from benchmarks.paper.report import COLORS, axes, curve, smooth, table
from benchmarks.paper.studies.following import Company, Method, Path, follower
from benchmarks.paper.studies.networks import SmallNetwork
from benchmarks.paper.training import Optimizer

FIRST = "Dense_0"
KFAC, SHAMPOO = 0.03, 3e-4  # the paper's dampings
OTHERS = (0.1, 10.0, 0.01, 1e-4)  # multiples of them that are tried too


class Size(NamedTuple):
  """How long, the grids, and how many gradients BDF's first layer keeps.

  Attributes:
    steps: of a path.
    search_steps: of a run of BDF's search.
    batch: images of a mini-batch.
    rates: learning rates of BDF.
    dampings: of BDF.
    others: multiples of the other methods' dampings that are tried too.
    rank: of BDF's first layer.
    widths: of the network.
  """

  steps: int
  search_steps: int
  batch: int
  rates: tuple[float, ...]
  dampings: tuple[float, ...]
  others: tuple[float, ...]
  rank: int
  widths: tuple[int, ...] = (20, 20, 20, 20, 20, 10)


RATES, DAMPINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-5, 1e-4, 1e-3, 1e-2)
SIZES = {
  "quick": Size(3, 2, 16, RATES[:1], DAMPINGS[:1], (), 4, (20, 20, 20, 10)),
  "cpu": Size(200, 60, 500, RATES, DAMPINGS, OTHERS, 100),
  "paper": Size(3_000, 500, 1_000, (*RATES, 3e-2), (1e-6, *DAMPINGS, 0.1), OTHERS, 100),
}


def run(options: Options) -> Report:
  """Cosines with BDF along its path, for its best damping and for the others."""
  size = SIZES[options.scale]
  digits = small_data(options)
  network = SmallNetwork(size.widths)
  task = tasks.classification("mnist", network, digits, size.batch, size.steps)
  middle = [f"Dense_{i}" for i in range(1, len(size.widths) - 1)]
  best = _search(task, size, options)
  follow = follower(task, lambda damping: gather(damping, size), middle)
  paths = {damping: follow(damping, rate) for damping, (rate, _) in best.items()}
  chosen = min(best, key=lambda damping: best[damping][1])
  follow = follower(task, lambda damping: gather_by_examples(damping, size), middle)
  examples = follow(chosen, best[chosen][0])
  text = _text(best, chosen, paths, examples)
  record = {
    "bdf": {str(damping): found for damping, found in best.items()},
    "chosen": chosen,
    "mean cosines": {str(damping): _means(path) for damping, path in paths.items()},
    "mean cosines, every example's gradient": _means(examples),
  }
  return Report(text, record, {"cosine": _figure(paths[chosen])})


def bdf(damping: Any, rank: int) -> optax.GradientTransformation:
  """BDF; in the wide first layer by its exact low-rank form.

  One block of 5,140 parameters takes gigabytes and minutes as a matrix; as the span of
  the last ``rank`` gradients it is exact up to what their moving average has forgotten.
  """
  whole = mbf_optax.Layer((0, 1), "low_rank", joins_bias=False, rank=rank)
  first = mbf_optax.scale_by_mbf(
    damping, partition=mbf_optax.flax_partition(overrides=[(FIRST, whole)])
  )
  return optax.partition({"first": first, "rest": scale_by_bdf(damping)}, _labels)


def _labels(params: optax.Params) -> dict[str, str]:
  return {name: "first" if name == FIRST else "rest" for name in params}


def gather(damping: Any, size: Size) -> Company:
  """BDF, and all methods, each with its inverses renewed at every step."""
  found = {"sgd": Method(optax.trace(0.9)), "adam": Method(optax.scale_by_adam())}
  mbf = functools.partial(mbf_optax.scale_by_mbf, inverse_update_period=1)
  shampoo = functools.partial(scale_by_shampoo, inverse_update_period=1)
  kfac = functools.partial(scale_by_kfac, inverse_update_period=1)
  for factor in (1.0, *size.others):
    of = "" if factor == 1 else f", damping x {factor:g}"
    found |= {
      f"mbf{of}": Method(mbf(damping * factor)),
      f"mbf_true{of}": Method(
        mbf(damping * factor), lambda s: {"curvature_gradients": s.sampled}
      ),
      f"shampoo{of}": Method(shampoo(SHAMPOO * factor)),
      f"kfac{of}": Method(kfac(KFAC * factor), lambda s: {"factors": s.factors}),
    }
  return Company(Method(bdf(damping, size.rank)), found)


def gather_by_examples(damping: Any, size: Size) -> Company:
  """The same where BDF averages the outer products of every example's gradient."""
  company = gather(damping, size)
  return company._replace(
    leader=Method(bdf(damping, size.rank), lambda s: {"example_gradients": s.examples})
  )


def _search(
  task: tasks.Task, size: Size, options: Options
) -> dict[float, tuple[float, float]]:
  """BDF's best learning rate and its training loss, by damping."""
  best = {}
  task = task._replace(steps=size.search_steps)
  total = task.steps * len(size.rates) * len(size.dampings)
  with session(options, "cosine", total) as opened:
    for damping in size.dampings:
      optimizer = Optimizer(
        functools.partial(_descend, damping, size.rank),
        [{"learning_rate": rate} for rate in size.rates],
      )
      runs = opened.train(f"bdf {damping:g}", task, optimizer, points=1)
      index = runs.best()
      loss = float(runs.final("train loss")[index, 0])
      best[damping] = size.rates[index], loss if np.isfinite(loss) else np.inf
  return best


def _descend(
  damping: float, rank: int, learning_rate: Any
) -> optax.GradientTransformation:
  descent = optax.scale_by_learning_rate(learning_rate)
  return optax.chain(bdf(damping, rank), descent)


def _means(path: Path) -> dict[str, list[float]]:
  """Means over the steps after the first tenth, one for each middle layer."""
  start = len(path.losses) // 10
  return {
    name: values[start:].mean(0).tolist() for name, values in path.cosines.items()
  }


def _best_of(means: dict[str, list[float]]) -> dict[str, str]:
  """The name of the damping with the largest cosine, by method."""
  best: dict[str, str] = {}
  for name, layers in means.items():
    method = name.partition(",")[0]
    if method not in best or np.mean(layers) > np.mean(means[best[method]]):
      best[method] = name
  return best


def _text(
  best: dict[float, tuple[float, float]],
  chosen: float,
  paths: dict[float, Path],
  examples: Path,
) -> str:
  rows = [
    [f"{damping:g}" + (" (chosen)" if damping == chosen else ""), rate, f"{loss:.4f}"]
    for damping, (rate, loss) in best.items()
  ]
  titles = ["BDF's damping", "best learning rate", "training loss"]
  parts = [
    table(titles, rows),
    "Mean cosine with BDF after the first tenth of the steps, at BDF's best damping."
    f" MBF has BDF's damping, KFAC {KFAC:g} and Shampoo {SHAMPOO:g}, or the multiple"
    " that stands behind the name:",
    _cosine_table(paths[chosen]),
    "Where BDF averages every example's outer product instead of taking that of the"
    " mini-batch's gradient:",
    _cosine_table(examples),
    "Mean over the layers at BDF's other dampings, each method at its best damping:",
    _damping_table(paths),
  ]
  return "\n\n".join(parts)


def _cosine_table(path: Path) -> str:
  means = _means(path)
  best = set(_best_of(means).values())
  rows = []
  for name, layers in means.items():
    mark = "best" if name in best else ""
    rows.append([name, *map("{:.2f}".format, (*layers, np.mean(layers))), mark])
  layers = map(_title, path.layers)
  return table(["method", *layers, "mean", "of its dampings"], rows)


def _damping_table(paths: dict[float, Path]) -> str:
  columns = {damping: _means(path) for damping, path in paths.items()}
  best = {damping: _best_of(means) for damping, means in columns.items()}
  names = next(iter(best.values()))
  rows = [
    [name, *(f"{np.mean(columns[d][best[d][name]]):.2f}" for d in columns)]
    for name in names
  ]
  return table(["method", *map("{:g}".format, columns)], rows)


def _title(layer: str) -> str:
  return f"layer {int(layer.removeprefix('Dense_')) + 1}"


def _figure(path: Path) -> matplotlib.figure.Figure:
  figure, grid = axes(2, 2, width=4, height=2.6, sharex=True, sharey=True)
  best = _best_of(_means(path))
  for column, (ax, layer) in enumerate(zip(grid.flat, path.layers, strict=False)):
    for method, name in best.items():
      values = smooth(path.cosines[name][None, :, column])
      curve(ax, np.arange(values.shape[-1]), values, name, COLORS.get(method))
    ax.axhspan(0.6, 0.7, color="black", alpha=0.06, linewidth=0)
    ax.set(title=_title(layer), ylim=(0, 1.02))
  for ax in grid[-1]:
    ax.set_xlabel("steps")
  for ax in grid[:, 0]:
    ax.set_ylabel("cosine with BDF")
  grid[0, -1].legend(frameon=False, fontsize=7, ncols=2)
  return figure
