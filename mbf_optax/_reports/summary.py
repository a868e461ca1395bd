"""What each layer becomes, and what that costs, before anything is allocated."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax

from mbf_optax._estimators.table import estimator_of
from mbf_optax._linalg.shifts import POLES
from mbf_optax._optimizers.adam import scale_by_mbf_adam
from mbf_optax._optimizers.fisher import MbfState, scale_by_mbf
from mbf_optax._optimizers.state import as_arrays
from mbf_optax._partition.choice import for_mbf, for_mbf_adam
from mbf_optax._partition.layer import Partition, Reading
from mbf_optax._partition.presets import flax_partition
from mbf_optax._tree import checks, paths
from mbf_optax.version import __version__

Optimizer = Literal["mbf", "mbf_adam"]


class LayerSummary(NamedTuple):
  """One row of a :class:`Summary`.

  Attributes:
    path: path of the layer's weight array.
    shape: its shape.
    reading: estimator, with ``"+bias"`` where the blocks contain the bias and
      ``"xN"`` for N stacked layers.
    blocks: number of mini-blocks.
    block_size: length of a block vector, its bias included.
    elements: number of the layer's parameters.
    state_bytes: bytes of moments, statistics and inverses.
    apply_flops: floating-point operations of every step.
    statistics_flops: operations of a statistics update.
    inverse_flops: operations of a refresh, in which ``mbf_adam`` makes five inverses
      of every matrix for its power.
  """

  path: str
  shape: tuple[int, ...]
  reading: str
  blocks: int
  block_size: int
  elements: int
  state_bytes: int
  apply_flops: int
  statistics_flops: int
  inverse_flops: int


class Summary(NamedTuple):
  """The layers of a parameter tree; prints as a Markdown table.

  Attributes:
    layers: one row a layer.
    state_bytes: bytes of the optimizer's whole state.
    elements: number of parameters.
  """

  layers: tuple[LayerSummary, ...]
  state_bytes: int
  elements: int

  @property
  def share_in_blocks(self) -> float:
    """Share of the parameters that lie in mini-blocks of several elements."""
    in_blocks = sum(row.elements for row in self.layers if row.block_size > 1)
    return in_blocks / max(self.elements, 1)

  @property
  def floats_per_parameter(self) -> float:
    """Numbers of the state, counted as float32, for every parameter."""
    return self.state_bytes / 4 / max(self.elements, 1)

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
    return "\n".join([first, _line(rule), *others, "", _totals(self), _caption()])


def summarize(
  params: Any,
  partition: Partition | None = None,
  optimizer: Optimizer = "mbf_adam",
  inverse_dtype: jax.typing.DTypeLike | None = None,
) -> Summary:
  """Tabulates how a parameter tree is read and what an optimizer will hold.

  Nothing is allocated, so it can be asked about models that do not fit.

  Args:
    params: the parameter tree, of arrays or of ``jax.ShapeDtypeStruct``.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    optimizer: whose state is counted, ``"mbf_adam"`` or ``"mbf"``.
    inverse_dtype: in which inverses are kept, see :func:`scale_by_mbf`.

  Returns:
    A :class:`Summary`: print it, a Markdown table. ``apply``, ``statistics`` and
    ``inverse`` are floating-point operations of each step, of a statistics update and
    of a refresh of the inverses.

  Raises:
    ValueError: as the optimizer's ``init(params)`` does.

  Examples:
    >>> import jax, mbf_optax
    >>> params = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((784, 1000), "float32")}}
    >>> print(mbf_optax.summarize(params))  # doctest: +ELLIPSIS
    | path             | shape    | reading   | blocks | block size |   state | apply...
    | ---------------- | -------- | --------- | -----: | ---------: | ------: | ----:...
    | `Dense_0/kernel` | 784x1000 | two_sided |  1,000 |        784 | 7.97 MB | 372 M...
    | 1 layer          |          |           |  1,000 |            | 7.97 MB | 372 M...
    <BLANKLINE>
    100% of 784,000 parameters lie in blocks; the state holds 2.5 floats a parameter.
    Operations: apply at each step, statistics and inverse at each of their updates. ...
  """
  partition = checks.partition(flax_partition() if partition is None else partition)
  checks.choice("optimizer", optimizer, tuple(_OPTIMIZERS))
  transformation, choose, inverses = _OPTIMIZERS[optimizer]
  tx = transformation(partition=partition, inverse_dtype=inverse_dtype)
  params = as_arrays(params)
  state = jax.eval_shape(tx.init, params)
  readings = [c for r in partition(params) for c in choose(r)]
  moments = list(map(paths.flatten, _moments(state)))
  rows = []
  for reading in readings:
    held = [moment[path] for moment in moments for path in reading.paths]
    held.append(state.curvature.get(reading.path))
    rows.append(_row(reading, _bytes(held), inverses))
  return Summary(tuple(rows), _bytes(state), _elements(params))


class _Choice(NamedTuple):
  """An optimizer.

  Attributes:
    transformation: makes its state.
    choose: its choice of estimators.
    inverses: that a refresh makes of every matrix.
  """

  transformation: Callable[..., optax.GradientTransformation]
  choose: Callable[[Reading], list[Reading]]
  inverses: int


_OPTIMIZERS = {
  "mbf": _Choice(scale_by_mbf, for_mbf, 1),
  "mbf_adam": _Choice(scale_by_mbf_adam, for_mbf_adam, POLES),
}


def _moments(state: Any) -> list[Any]:
  """Trees like the parameters that a state holds."""
  if isinstance(state, MbfState):
    return [state.momentum]
  return [state.adam.mu, state.adam.nu]


def _row(reading: Reading, state_bytes: int, inverses: int) -> LayerSummary:
  operations = estimator_of(reading).operations()
  operations = operations._replace(inverse=inverses * operations.inverse)
  return LayerSummary(
    reading.path,
    reading.shape,
    reading.label,
    reading.blocks,
    reading.block_size,
    reading.elements,
    state_bytes,
    *operations,
  )


def _elements(params: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


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


def _totals(summary: Summary) -> str:
  return (
    f"{summary.share_in_blocks:.0%} of {summary.elements:,} parameters lie in blocks;"
    f" the state holds {summary.floats_per_parameter:.1f} floats a parameter."
  )


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
