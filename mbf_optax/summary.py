"""What each layer becomes, and what that costs, before anything is allocated."""

import math
from typing import Any, NamedTuple

import jax

from mbf_optax import tree
from mbf_optax.layers import Partition, Reading
from mbf_optax.presets import flax_partition
from mbf_optax.transform import scale_by_mbf


class LayerSummary(NamedTuple):
  """One row of a :class:`Summary`.

  Attributes:
    path: path of the layer's weight array.
    shape: its shape.
    reading: estimator, with ``"+bias"`` where the blocks contain the bias and
      ``"xN"`` for N stacked layers.
    blocks: number of mini-blocks.
    block_size: length of a block vector, its bias included.
    state_bytes: bytes of momentum, statistics and inverses.
    apply_flops: floating-point operations of every step.
    statistics_flops: operations of a statistics update.
    inverse_flops: operations of an inverse update.
  """

  path: str
  shape: tuple[int, ...]
  reading: str
  blocks: int
  block_size: int
  state_bytes: int
  apply_flops: int
  statistics_flops: int
  inverse_flops: int


class Summary(NamedTuple):
  """The layers of a parameter tree; prints as a table.

  Attributes:
    layers: one row a layer.
    state_bytes: bytes of the whole :class:`MbfState`.
  """

  layers: tuple[LayerSummary, ...]
  state_bytes: int

  def flops_per_step(
    self, curvature_update_period: int, inverse_update_period: int
  ) -> float:
    """Mean operations a step under the given periods."""
    return sum(
      row.apply_flops
      + row.statistics_flops / curvature_update_period
      + row.inverse_flops / inverse_update_period
      for row in self.layers
    )

  def __str__(self) -> str:
    titles = "path shape reading blocks size state apply stats inverse"
    rows = [tuple(titles.split()), *map(_cells, self.layers), _total(self)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 3  # columns of text; the others are numbers
    lines = [
      "  ".join(
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
      ).rstrip()
      for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def summarize(params: Any, partition: Partition | None = None) -> Summary:
  """Tabulates how a parameter tree is read and what :func:`scale_by_mbf` will hold.

  Nothing is allocated, so it can be asked about models that do not fit.

  Args:
    params: the parameter tree, of arrays or of ``jax.ShapeDtypeStruct``.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.

  Returns:
    A :class:`Summary`: print it. State is in bytes; ``apply``, ``stats`` and
    ``inverse`` are floating-point operations of a step, of a statistics update and of
    an inverse update.

  Raises:
    ValueError: as ``scale_by_mbf(partition=partition).init(params)`` does.

  Examples:
    >>> import jax, mbf_optax
    >>> params = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((784, 1000), "float32")}}
    >>> print(mbf_optax.summarize(params))
    path            shape     reading  blocks  size    state   apply   stats  inverse
    ---------------------------------------------------------------------------------
    Dense_0/kernel  784x1000  shared    1,000   784  8.05 MB  1.23 G  1.23 G    964 M
    ---------------------------------------------------------------------------------
    1 layer                             1,000        8.05 MB  1.23 G  1.23 G    964 M
  """
  partition = flax_partition() if partition is None else partition
  state = jax.eval_shape(scale_by_mbf(partition=partition).init, params)
  momentum = tree.flatten(state.momentum)
  rows = []
  for reading in partition(params):
    held = [state.curvature[reading.path], *(momentum[path] for path in reading.paths)]
    rows.append(_row(reading, _bytes(held)))
  return Summary(tuple(rows), _bytes(state))


def _row(reading: Reading, state_bytes: int) -> LayerSummary:
  layer, n, blocks = reading.layer, reading.block_size, reading.blocks
  stacked = math.prod(reading.stack_shape)
  rank = layer.rank
  apply, statistics, inverse = {
    "full": (2 * n * n * blocks, 3 * n * n * blocks, 2 * n**3 * blocks),
    "shared": (2 * n * n * blocks, 2 * n * n * blocks, 2 * n**3 * stacked),
    "low_rank": (4 * n * rank * blocks, (2 * n * rank + 2 * rank**3) * blocks, 0),
    "rms": (6 * blocks, 0, 0),
    "inverse": (5 * blocks, 0, 0),
  }[layer.estimator]
  name: str = layer.estimator
  name += "" if reading.bias_path is None else "+bias"
  name += "" if stacked == 1 else f" x{stacked}"
  return LayerSummary(
    reading.path,
    reading.shape,
    name,
    blocks,
    n,
    state_bytes,
    apply,
    statistics,
    inverse,
  )


def _bytes(arrays: Any) -> int:
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))


def _cells(row: LayerSummary) -> tuple[str, ...]:
  return (
    row.path or "(the array)",
    "x".join(map(str, row.shape)) or "scalar",
    row.reading,
    f"{row.blocks:,}",
    str(row.block_size),
    _human(row.state_bytes, "B"),
    _human(row.apply_flops),
    _human(row.statistics_flops),
    _human(row.inverse_flops),
  )


def _total(summary: Summary) -> tuple[str, ...]:
  rows = summary.layers
  return (
    f"{len(rows)} layer{'' if len(rows) == 1 else 's'}",
    "",
    "",
    f"{sum(row.blocks for row in rows):,}",
    "",
    _human(summary.state_bytes, "B"),
    _human(sum(row.apply_flops for row in rows)),
    _human(sum(row.statistics_flops for row in rows)),
    _human(sum(row.inverse_flops for row in rows)),
  )


def _human(value: float, unit: str = "") -> str:
  """``1234567`` as ``1.23 M``, in powers of a thousand."""
  prefixes = iter(("", "k", "M", "G", "T", "P"))
  prefix = next(prefixes)
  while value >= 1000:
    value, prefix = value / 1000, next(prefixes)
  return f"{value:.3g} {prefix}{unit}".strip()
