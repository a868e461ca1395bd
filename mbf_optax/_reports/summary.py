"""What each layer becomes, and what that costs, before anything is allocated."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import optax

from mbf_optax import checks, tree
from mbf_optax.curvature import Curvature
from mbf_optax.layers import Partition, Reading
from mbf_optax.presets import flax_partition
from mbf_optax.transform import init_state
from mbf_optax.version import __version__


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
  """The layers of a parameter tree; prints as a Markdown table.

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
    rows = [_TITLES, *map(_cells, self.layers), _total(self)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = (
      "-" * width if i < _TEXT_COLUMNS else "-" * (width - 1) + ":"
      for i, width in enumerate(widths)
    )
    first, *others = (_line(_aligned(row, widths)) for row in rows)
    return "\n".join([first, _line(rule), *others, "", _caption()])


def summarize(
  params: Any,
  partition: Partition | None = None,
  inverse_dtype: jax.typing.DTypeLike | None = None,
) -> Summary:
  """Tabulates how a parameter tree is read and what :func:`scale_by_mbf` will hold.

  Nothing is allocated, so it can be asked about models that do not fit.

  Args:
    params: the parameter tree, of arrays or of ``jax.ShapeDtypeStruct``.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse_dtype: in which inverses are kept, see :func:`scale_by_mbf`.

  Returns:
    A :class:`Summary`: print it, a Markdown table. ``apply``, ``statistics`` and
    ``inverse`` are floating-point operations of each step, of a statistics update and
    of an inverse update.

  Raises:
    ValueError: as ``scale_by_mbf(partition=partition).init(params)`` does.

  Examples:
    >>> import jax, mbf_optax
    >>> params = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((784, 1000), "float32")}}
    >>> print(mbf_optax.summarize(params))  # doctest: +ELLIPSIS
    | path             | shape    | reading | blocks | block size |   state |  apply...
    | ---------------- | -------- | ------- | -----: | ---------: | ------: | -----:...
    | `Dense_0/kernel` | 784x1000 | shared  |  1,000 |        784 | 8.05 MB | 1.23 G...
    | 1 layer          |          |         |  1,000 |            | 8.05 MB | 1.23 G...
    <BLANKLINE>
    Operations: apply at each step, statistics and inverse at each of their updates. ...
  """
  partition = flax_partition() if partition is None else partition
  readings = checks.readings(partition, params)
  # What is held does not depend on the other hyperparameters.
  curvature = Curvature(1.0, False, "sweep", inverse_dtype)
  init = functools.partial(init_state, curvature, readings)
  state = jax.eval_shape(init, params)
  momentum = tree.flatten(state.momentum)
  rows = []
  for reading in readings:
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
  return LayerSummary(
    reading.path,
    reading.shape,
    reading.label,
    blocks,
    n,
    state_bytes,
    apply,
    statistics,
    inverse,
  )


def _bytes(arrays: Any) -> int:
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))


_TITLES = (
  "path",
  "shape",
  "reading",
  "blocks",
  "block size",
  "state",
  "apply",
  "statistics",
  "inverse",
)
_TEXT_COLUMNS = 3  # of the titles; the others are numbers, aligned to the right


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
  for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
    yield cell.ljust(width) if i < _TEXT_COLUMNS else cell.rjust(width)


def _line(cells: Iterable[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _caption() -> str:
  return (
    "Operations: apply at each step, statistics and inverse at each of their updates."
    f" mbf_optax {__version__}, jax {jax.__version__}, optax {optax.__version__}."
  )


def _cells(row: LayerSummary) -> tuple[str, ...]:
  return (
    f"`{row.path}`" if row.path else "(the array)",
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
  prefixes = ("", "k", "M", "G", "T", "P", "E")
  power = 0
  while float(f"{value:.3g}") >= 1000 and power < len(prefixes) - 1:
    value, power = value / 1000, power + 1
  return f"{value:.3g} {prefixes[power]}{unit}".strip()
