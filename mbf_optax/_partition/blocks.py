"""From parameters to the block vectors of a layer, and back.

A layer of a dense kernel ``(in, out)`` and a bias ``(out,)`` is ``(in + 1, out)`` as
blocks: every column is one mini-block. A convolution kernel ``(3, 3, in, out)`` is
``(9, in, out)``.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from mbf_optax._partition.layer import Reading
from mbf_optax._tree.dtypes import as_float
from mbf_optax._tree.paths import Leaves
from mbf_optax._tree.shapes import Array, Inexact

Pieces = Sequence[Inexact[Array, "_ *batch"]]
"""Block vectors in pieces of consecutive elements."""


def to_blocks(reading: Reading, leaves: Leaves) -> Inexact[Array, "n *batch"]:
  """Block vectors of a layer, in float32 or wider; the batch is ``(*stack, *counted)``.

  Layers that are read element by element give ``(1, *shape)``.

  Args:
    reading: the layer.
    leaves: arrays by path; the weight array and, if joined, its bias are taken.
  """
  return joined(to_pieces(reading, leaves))


def to_pieces(reading: Reading, leaves: Leaves) -> Pieces:
  """:func:`to_blocks` in one piece for each array: the weights, and the bias if joined.

  Joining them is a pass over memory that most of what is done to them can do without.
  """
  array = as_float(leaves[reading.path])
  if reading.layer.elementwise:
    return (array[None],)
  axes = reading.layer.block_axes
  blocks = jnp.transpose(array, axes + reading.batch_axes)
  size = math.prod(reading.shape[axis] for axis in axes)  # -1 fails without blocks
  blocks = blocks.reshape(size, *reading.batch_shape)
  if reading.bias_path is None:
    return (blocks,)
  order = reading.bias_axes
  bias = as_float(leaves[reading.bias_path])
  bias = bias.reshape([reading.shape[axis] for axis in order])
  bias = jnp.transpose(bias, [order.index(axis) for axis in reading.batch_axes])
  return blocks, bias[None]


def joined(pieces: Pieces) -> Inexact[Array, "n *batch"]:
  """Block vectors in one array."""
  return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)


def cut(reading: Reading, blocks: Inexact[Array, "n *batch"]) -> Pieces:
  """Inverse of :func:`joined`."""
  return (blocks,) if reading.bias_path is None else (blocks[:-1], blocks[-1:])


def from_blocks(reading: Reading, blocks: Inexact[Array, "n *batch"]) -> Leaves:
  """Inverse of :func:`to_blocks`: arrays in the parameters' shapes, by path."""
  return from_pieces(reading, cut(reading, blocks))


def from_pieces(reading: Reading, pieces: Pieces) -> Leaves:
  """Inverse of :func:`to_pieces`."""
  if reading.layer.elementwise:
    return {reading.path: pieces[0][0]}
  leaves = {}
  if reading.bias_path is not None:
    order = [reading.batch_axes.index(axis) for axis in reading.bias_axes]
    bias = jnp.transpose(pieces[1][0], order)
    leaves[reading.bias_path] = bias.reshape(reading.bias_shape)
  axes = reading.layer.block_axes + reading.batch_axes
  array = pieces[0].reshape([reading.shape[axis] for axis in axes])
  leaves[reading.path] = jnp.transpose(array, [axes.index(i) for i in range(len(axes))])
  return leaves
