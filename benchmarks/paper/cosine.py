"""Figure 6: how close are the methods' directions to that of the whole Fisher blocks?

On the path of BDF, which inverts the empirical Fisher matrix of every layer, all other
methods are given the same gradients, and the cosine of their direction with BDF's is
taken layer by layer. BDF takes its matrices from the mini-batch's gradient, as MBF
does, or from every example's. The damping of every method decides much: all of BDF's
are shown, and the other methods' are searched for the largest cosine.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
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
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.report import (
  COLORS,
  axes,
  curve,
  numbers,
  plain,
  rounded,
  smooth,
  table,
)
from benchmarks.paper.studies.following import Company, Method, Path, follower
from benchmarks.paper.studies.networks import SmallNetwork

FIRST = "Dense_0"
KFAC, SHAMPOO = 0.03, 3e-4  # the paper's dampings
OTHERS = (0.1, 10.0, 0.01)  # multiples of them that are tried too


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


RATES, DAMPINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
SIZES = {
  "quick": Size(3, 2, 16, RATES[:1], DAMPINGS[:1], (), 4, (20, 20, 20, 10)),
  "cpu": Size(150, 60, 500, RATES, DAMPINGS, OTHERS, 100),
  "paper": Size(3_000, 500, 1_000, (*RATES, 3e-2), (1e-6, *DAMPINGS), OTHERS, 100),
}


BATCH, EXAMPLES = "the mini-batch's gradient", "every example's gradient"
Means = Mapping[str, list[float]]
"""Of cosines over the steps, one for each middle layer, by method."""
Kept = Mapping[str, Any]
"""What is kept of a path: BDF's rate, its last loss, and means of cosines."""
POINTS = 30  # of a curve


def run(options: Options) -> Report:
  """Cosines with both kinds of BDF along their paths."""
  size = SIZES[options.scale]
  digits = small_data(options)
  network = SmallNetwork(size.widths)
  task = tasks.classification("mnist", network, digits, size.batch, size.steps)
  middle = [f"Dense_{i}" for i in range(1, len(size.widths) - 1)]
  rates = _search(task, size, options)
  kinds: dict[str, dict[float, Path]] = {}
  for kind, build in ((BATCH, gather), (EXAMPLES, gather_by_examples)):
    follow = follower(task, functools.partial(build, size=size), middle)
    kinds[kind] = {damping: follow(damping, rate) for damping, rate in rates.items()}
  record = {
    kind: {
      str(damping): {
        "learning rate": rates[damping],
        "last loss": _last_loss(path),
        "mean cosines": _means(path),
      }
      for damping, path in paths.items()
    }
    for kind, paths in kinds.items()
  }
  damping = _lowest(plain(record[EXAMPLES]))
  lowest = kinds[EXAMPLES][float(damping)]
  searched = _best_of(_means(lowest))["mbf"]
  drawn = {
    name: _thinned(values)
    for name, values in lowest.cosines.items()
    if "," not in name or name == searched
  }
  every = _every(len(lowest.losses))
  picture = {"layers": lowest.layers, "every": every, "cosines": drawn}
  return of_record(plain({**record, "picture": picture}))


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of paths that were kept."""
  kinds = {
    kind: {damping: _restored(path) for damping, path in record[kind].items()}
    for kind in (BATCH, EXAMPLES)
  }
  figure, layers = _figure(record["picture"]), record["picture"]["layers"]
  return Report(_text(kinds, layers), dict(record), {"cosine": figure})


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


def _search(task: tasks.Task, size: Size, options: Options) -> dict[float, float]:
  """The learning rate with the lowest training loss, by BDF's damping."""
  best = {}
  task = dataclasses.replace(task, steps=size.search_steps)
  total = task.steps * len(size.rates) * len(size.dampings)
  with session(options, "cosine", total) as opened:
    for damping in size.dampings:
      optimizer = Optimizer(
        functools.partial(_descend, damping, size.rank),
        [{"learning_rate": rate} for rate in size.rates],
      )
      runs = opened.train(f"bdf {damping:g}", task, optimizer, points=1)
      best[damping] = size.rates[runs.best()]
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


def _restored(kept: Kept) -> Kept:
  """Cosines along a path that diverged are not numbers, and were kept as null."""
  means = {
    name: numbers(layers).tolist() for name, layers in kept["mean cosines"].items()
  }
  return {**kept, "mean cosines": means}


def _thinned(cosines: np.ndarray) -> np.ndarray:
  """``(layers, points)``: running means, as many as a picture shows."""
  return rounded(smooth(cosines.T)[:, :: _every(len(cosines))], 3)


def _every(steps: int) -> int:
  """Steps between those of the picture."""
  return max(1, steps // POINTS)


def _best_of(means: Means) -> dict[str, str]:
  """The name of the damping with the largest cosine, by method."""
  best: dict[str, str] = {}
  for name, layers in means.items():
    method = name.partition(",")[0]
    if method not in best or np.mean(layers) > np.mean(means[best[method]]):
      best[method] = name
  return best


def _last_loss(path: Path) -> float:
  """Mean over the last tenth of the steps; infinite if not finite."""
  loss = float(path.losses[-(len(path.losses) // 10 + 1) :].mean())
  return loss if np.isfinite(loss) else np.inf


def _lowest(paths: Mapping[str, Kept]) -> str:
  """The damping with the lowest last loss; one that is not finite was kept as null."""
  losses = numbers([path["last loss"] for path in paths.values()])
  return [*paths][int(np.where(np.isfinite(losses), losses, np.inf).argmin())]


def _text(kinds: Mapping[str, Mapping[str, Kept]], layers: Sequence[str]) -> str:
  parts = [
    "Mean cosine with BDF over the middle layers after the first tenth of the steps, by"
    f" BDF's damping: with MBF at BDF's own damping, KFAC at {KFAC:g} and Shampoo at"
    f" {SHAMPOO:g}, and after the slash with each method at its best multiple of that.",
  ]
  for kind, paths in kinds.items():
    parts += [f"BDF from {kind}:", _damping_table(paths)]
  examples = kinds[EXAMPLES]
  parts += [
    f"BDF from {EXAMPLES}, at its damping of the lowest loss, layer by layer (the"
    " picture):",
    _layer_table(examples[_lowest(examples)]["mean cosines"], layers),
  ]
  return "\n\n".join(parts)


def _damping_table(paths: Mapping[str, Kept]) -> str:
  means = [path["mean cosines"] for path in paths.values()]
  best = [_best_of(found) for found in means]
  losses = [path["last loss"] for path in paths.values()]
  rows = [
    ["BDF's learning rate", *(f"{path['learning rate']:g}" for path in paths.values())],
    ["BDF's last loss", *("inf" if x is None else f"{x:.3f}" for x in losses)],
  ]
  for name in best[0]:
    row = [name]
    for found, chosen in zip(means, best, strict=True):
      own, searched = np.mean(found[name]), np.mean(found[chosen[name]])
      row.append(f"{own:.2f} / {searched:.2f}")
    rows.append(row)
  return table(["BDF's damping", *(f"{float(d):g}" for d in paths)], rows)


def _layer_table(means: Means, layers: Sequence[str]) -> str:
  rows = [
    [name, *map("{:.2f}".format, (*of_layers, np.mean(of_layers)))]
    for name, of_layers in means.items()
  ]
  return table(["method", *map(_title, layers), "mean"], rows)


def _title(layer: str) -> str:
  return f"layer {int(layer.removeprefix('Dense_')) + 1}"


def _figure(picture: Mapping[str, Any]) -> matplotlib.figure.Figure:
  figure, grid = axes(2, 2, width=4, height=2.6, sharex=True, sharey=True)
  for row, (ax, layer) in enumerate(zip(grid.flat, picture["layers"], strict=False)):
    for name, cosines in picture["cosines"].items():
      values = numbers(cosines)[None, row]
      style = {"linestyle": "--"} if name not in COLORS else {}
      color = COLORS[name.partition(",")[0]]
      at = picture["every"] * np.arange(values.shape[-1])
      curve(ax, at, values, name, color, **style)
    ax.axhspan(0.6, 0.7, color="black", alpha=0.06, linewidth=0)
    ax.set(title=_title(layer), ylim=(0, 1.02))
  for ax in grid[-1]:
    ax.set_xlabel("steps")
  for ax in grid[:, 0]:
    ax.set_ylabel("cosine with BDF")
  grid[0, -1].legend(frameon=False, fontsize=7, ncols=2)
  return figure
