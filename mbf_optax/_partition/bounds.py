"""How much state a reading may hold: no default reading explodes.

A parameter of Adam costs two floats. A matrix for every block of ``n`` elements, with
its inverse, costs ``n + 1`` more for each of them (both are symmetric and kept as
triangles), one matrix for a part of ``p`` inputs of a layer of ``k`` outputs
``2 p / k``. What would hold more than ``FLOATS`` a parameter is read another way unless
it is asked for.
"""

import dataclasses
import math

from mbf_optax._partition.layer import Layer

FLOATS = 40
FULL_BLOCK = FLOATS - 4  # elements of the largest block with a matrix of its own
_PART = FLOATS // 2 - 3  # inputs that one matrix may span for every output


def within_bounds(layer: Layer, shape: tuple[int, ...]) -> Layer:
  """A layer whose shared matrices, of either side, hold few floats a parameter.

  Args:
    layer: a dense layer or a convolution, with non-negative axes.
    shape: shape of its weight array.

  Returns:
    The layer, its ``block_limit`` lowered where a layer has so few inputs or outputs
    that matrices of its own width would outweigh it. A limit wider than the default was
    asked for and stays.
  """
  if layer.block_limit > Layer.block_limit:
    return layer
  size = math.prod(shape[axis] for axis in layer.block_axes)
  taken = layer.block_axes + layer.stack_axes
  counted = math.prod(n for axis, n in enumerate(shape) if axis not in taken)
  limit = max(1, min(layer.block_limit, _PART * min(size, counted)))
  if limit == layer.block_limit:
    return layer
  return dataclasses.replace(layer, block_limit=limit)
