"""Figures 4, 5, 13 and 14: is the inverse empirical Fisher matrix mini-block diagonal?

Beside the pictures, numbers: the share of the inverse's absolute and squared weight in
the mini-blocks, against the share of its entries that they are and against other
partitions into blocks of about the same size.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.colors import LogNorm

from benchmarks.paper import data, tasks
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.report import axes, plain, table
from benchmarks.paper.studies import fisher
from benchmarks.paper.studies.fitting import fit
from benchmarks.paper.studies.networks import SimpleCnn, SmallNetwork
from examples.data import Data

DAMPINGS = (0.01, 0.1, 1.0, 10.0)
SHOWN = 0.1


class Size(NamedTuple):
  """Training and measuring: steps and examples, for the small net and the CNN."""

  small_steps: int
  cnn_steps: int
  small_examples: int
  cnn_examples: int
  channels: tuple[int, int]
  hidden: int


SIZES = {
  "quick": Size(10, 3, 256, 64, (2, 2), 16),
  "cpu": Size(6_000, 250, 10_000, 4_000, (32, 64), 1024),
  "paper": Size(6_000, 4_690, 60_000, 60_000, (32, 64), 1024),
}


class Studied(NamedTuple):
  """One matrix: part of a layer's empirical Fisher matrix.

  Attributes:
    name: which part.
    matrix: ``(n, n)``.
    partitions: labels by name; the mini-blocks are the first.
  """

  name: str
  matrix: np.ndarray
  partitions: dict[str, np.ndarray]


def run(options: Options) -> Report:
  """Inverse empirical Fisher matrices of the two networks."""
  size = SIZES[options.scale]
  studied = [*_small_network(options, size), *_convolutions(options, size)]
  shares = {
    part.name: {
      str(damping): _shares(part, fisher.damped_inverse(part.matrix, damping))
      for damping in DAMPINGS
    }
    for part in studied
  }
  report = of_record(plain({"shares": shares}))
  return report._replace(figures={"heatmaps": _figure(studied)})


def of_record(record: Mapping[str, Any]) -> Report:
  """The tables of shares that were kept; the matrices of the picture are not."""
  shares = {
    name: {
      damping: {partition: fisher.Share(**share) for partition, share in found.items()}
      for damping, found in by_damping.items()
    }
    for name, by_damping in record["shares"].items()
  }
  rows = [row for name in shares for row in _rows(name, shares[name][str(SHOWN)])]
  text = (
    f"Damping of {SHOWN:g} times the mean diagonal. `weight` is the share of the sum of"
    " absolute values that lies inside the blocks, `squares` that of the squared"
    " Frobenius norm, `entries` the share of the entries that the blocks are; `off`"
    " leaves the diagonal out of all three. `contrast` is the mean absolute"
    " off-diagonal entry inside the blocks over that outside.\n\n"
    + table(_TITLES, rows)
    + "\n\nContrast of the mini-blocks against the damping:\n\n"
    + _damping_table(shares)
  )
  return Report(text, dict(record), {})


def small_data(options: Options) -> Data:
  """MNIST at 16 x 16."""
  full = data.images("mnist", options)

  def shrink(x: np.ndarray) -> np.ndarray:
    shape = (len(x), 16, 16, 1)
    return np.asarray(jax.image.resize(x, shape, "linear", antialias=True))

  return full._replace(x_train=shrink(full.x_train), x_test=shrink(full.x_test))


def _small_network(options: Options, size: Size) -> Iterator[Studied]:
  digits, model = small_data(options), SmallNetwork()
  batch = min(500, len(digits.x_train) // 2)
  task = tasks.classification("mnist", model, digits, batch, size.small_steps)
  params = fit(task, learning_rate=0.05)
  for name, layer in (
    ("second", "Dense_1"),
    ("middle", "Dense_3"),
    ("last", "Dense_5"),
  ):
    inputs, outputs = params[layer]["kernel"].shape
    batches = _batches(digits, size.small_examples, 500)
    matrix = fisher.empirical_fisher(fisher.dense_rows(model, layer), params, batches)
    neuron = np.repeat(np.arange(outputs), inputs + 1)
    source = np.tile(np.arange(inputs + 1), outputs)
    partitions = {"neuron (mini-blocks)": neuron, "input": source}
    yield Studied(f"small net, {name} layer", matrix, _with_random(partitions))


def _convolutions(options: Options, size: Size) -> Iterator[Studied]:
  images = data.images("fashion_mnist", options)
  model = SimpleCnn(size.channels, size.hidden)
  batch = min(128, len(images.x_train) // 2)
  task = tasks.classification("fashion_mnist", model, images, batch, size.cnn_steps)
  params = fit(task, learning_rate=0.02)
  first, second = size.channels
  whole = tuple(range(second))
  parts = [("first convolution", 0, (0,), tuple(range(first)))]
  for channel in sorted({0, first // 2 - 1, first - 1}):
    name = f"second convolution, input channel {channel + 1}"
    parts.append((name, 1, (channel,), whole))
  some = tuple(range(min(8, first)))
  name = f"second convolution, {len(some)} x {len(some)} channels"
  parts.append((name, 1, some, some))
  for name, layer, inputs, outputs in parts:
    rows = fisher.convolution_rows(model, layer, inputs, outputs)
    batches = _batches(images, size.cnn_examples, 200)
    matrix = fisher.empirical_fisher(rows, params, batches)
    yield Studied(name, matrix, _of_kernels(len(inputs), len(outputs)))


def _of_kernels(inputs: int, outputs: int) -> dict[str, np.ndarray]:
  output, source, offset = (grid.ravel() for grid in np.indices((outputs, inputs, 25)))
  partitions = {"kernel (mini-blocks)": output * inputs + source}
  if inputs > 1:
    partitions |= {"output channel": output, "input channel": source}
  return _with_random(partitions | {"spatial offset": offset})


def _with_random(partitions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """And blocks of the mini-blocks' sizes, with members drawn at random."""
  mini_blocks = next(iter(partitions.values()))
  return partitions | {"random": np.random.default_rng(0).permutation(mini_blocks)}


def _batches(images: Data, examples: int, size: int) -> Iterator[tuple]:
  size = min(size, examples)
  for start in range(0, examples // size * size, size):
    rows = slice(start, start + size)
    yield jnp.asarray(images.x_train[rows]), jnp.asarray(images.y_train[rows])


def _shares(part: Studied, inverse: np.ndarray) -> dict[str, fisher.Share]:
  return {
    name: fisher.share(inverse, groups) for name, groups in part.partitions.items()
  }


_TITLES = ["matrix", "blocks by", "entries", "weight", "squares"]
_TITLES += ["entries, off", "weight, off", "squares, off", "contrast"]


def _rows(name: str, shares: dict[str, fisher.Share]) -> list[list[str]]:
  rows = []
  for partition, found in shares.items():
    percents = map("{:.1%}".format, found)
    rows.append([name, partition, *percents, f"{found.contrast:.1f}"])
    name = ""
  return rows


def _damping_table(shares: dict[str, dict[str, dict[str, fisher.Share]]]) -> str:
  rows = [
    [
      name,
      *(f"{next(iter(found.values())).contrast:.1f}" for found in by_damping.values()),
    ]
    for name, by_damping in shares.items()
  ]
  return table(["matrix", *map("{:g}".format, DAMPINGS)], rows)


_LIMIT = 150  # rows of a matrix that are shown
_LEVELS = 10  # of color, over three decades: noise in more makes the file large


def _figure(studied: list[Studied]) -> matplotlib.figure.Figure:
  columns = -(-len(studied) // 2)
  figure, grid = axes(2, columns, width=2.1, height=2.4)
  colors = matplotlib.colormaps["viridis"].resampled(_LEVELS)
  for ax in grid.flat:
    ax.set_axis_off()
  for ax, part in zip(grid.flat, studied, strict=False):
    inverse = np.abs(fisher.damped_inverse(part.matrix, SHOWN))[:_LIMIT, :_LIMIT]
    top = np.quantile(inverse, 0.999)
    norm = LogNorm(top / 1e3, top, clip=True)
    ax.imshow(inverse, norm=norm, cmap=colors, interpolation="nearest")
    groups = next(iter(part.partitions.values()))
    found = fisher.share(fisher.damped_inverse(part.matrix, SHOWN), groups)
    ax.set_title(
      f"{part.name.replace(', ', chr(10))}\n{found.absolute:.0%} of the weight in"
      f" {found.entries:.1%} of the entries",
      fontsize=6,
    )
  return figure
