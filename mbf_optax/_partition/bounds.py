"""How much state a reading may hold: no default reading explodes.

A parameter of Adam costs two floats. A matrix for every block of ``n`` elements, with
its inverse, costs ``n + 1`` more for each of them (both are symmetric and kept as
triangles), one matrix for a part of ``p`` inputs of a layer of ``k`` outputs
``2 p / k``. What would hold more than ``FLOATS`` a parameter is read another way unless
it is asked for.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from mbf_optax._partition.layer import Layer, Reading

FLOATS = 40
FULL_BLOCK = FLOATS - 4  # elements of the largest block with a matrix of its own
_MOMENTS = 2  # floats a parameter that Adam holds
_PACKED = 64  # largest block whose symmetric matrix is kept as a triangle
_SILENT_BYTES = 10**9  # what a layer may hold without being asked about
_PART = FLOATS // 2 - 3  # inputs that one matrix may span for every output


def within_bounds(layer: Layer, shape: tuple[int, ...]) -> Layer:
  """A layer whose shared matrices, of either side, hold few floats a parameter.

  Args:
    layer: a dense layer or a convolution, with non-negative axes.
    shape: shape of its weight array.

  Returns:
    The layer, its ``block_limit`` lowered where a layer has so few inputs or outputs
    that matrices of its own width would outweigh it.
  """
  size = math.prod(shape[axis] for axis in layer.block_axes)
  taken = layer.block_axes + layer.stack_axes
  counted = math.prod(n for axis, n in enumerate(shape) if axis not in taken)
  limit = max(1, min(layer.block_limit, _PART * min(size, counted)))
  if limit == layer.block_limit:
    return layer
  return dataclasses.replace(layer, block_limit=limit)


def floats(reading: Reading) -> int:
  """Floats that a layer's moments, statistics and inverses hold, to within padding.

  ``"auto"`` is counted as the larger of what it may become.
  """
  moments = _MOMENTS * reading.elements
  if reading.layer.elementwise:
    return moments + reading.elements
  return moments + _MATRICES[reading.layer.estimator](reading)


def _full(reading: Reading) -> int:
  n = reading.block_size
  return reading.blocks * (n * (n + 1) if n <= _PACKED else 2 * n * n)


def _low_rank(reading: Reading) -> int:
  rank = reading.layer.rank
  return reading.blocks * rank * (reading.block_size + rank + 1)


def _shared(reading: Reading) -> int:
  return math.prod(reading.stack_shape) * _in_parts(reading, reading.block_size)


def _two_sided(reading: Reading) -> int:
  outputs = _in_parts(reading, reading.blocks_per_layer)
  return _shared(reading) + math.prod(reading.stack_shape) * outputs


def _automatic(reading: Reading) -> int:
  is_small = reading.block_size <= reading.layer.full_limit
  return _full(reading) if is_small else _two_sided(reading)


def _in_parts(reading: Reading, n: int) -> int:
  """Floats of the matrices of ``n`` rows in equal parts."""
  parts = -(-n // reading.layer.block_limit)
  return 2 * parts * (-(-n // parts)) ** 2


_MATRICES: dict[str, Callable[[Reading], int]] = {
  "auto": _automatic,
  "full": _full,
  "low_rank": _low_rank,
  "shared": _shared,
  "two_sided": _two_sided,
}
"""Floats of statistics and inverses by estimator."""


def check_size(readings: Sequence[Reading]) -> None:
  """Raises a ``ValueError`` for a layer that would hold very much.

  That is more than 40 floats a parameter and more than a gigabyte in float32. What the
  partitions choose by themselves never does; a :class:`Layer`, an override or a limit
  of the user's may.
  """
  for reading in readings:
    held = floats(reading)
    if held <= FLOATS * reading.elements or 4 * held <= _SILENT_BYTES:
      continue
    raise ValueError(
      f"mbf_optax: {reading.describe()} would hold {4 * held / 1e9:,.1f} GB,"
      f" {held / reading.elements:,.0f} floats a parameter where Adam holds"
      f' {_MOMENTS}. Read it as "shared" with a block_limit of'
      f" {Layer.block_limit} or less, along other block_axes, or as"
      ' "rms", with an override.'
    )
