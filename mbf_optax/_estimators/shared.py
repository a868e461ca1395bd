"""The ``shared`` estimator: one matrix for all blocks of a layer.

The paper's spatial averaging (section 5): the average of the layer's mini-blocks
stands in for each of them.

Wide matrices are kept with rows and columns to spare, a multiple of eight, so that
their rows divide evenly over a mesh of devices although a bias makes them odd.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from mbf_optax import placement
from mbf_optax.estimators import without_faults
from mbf_optax.full import BlockState, MatrixBlocks, identity_state
from mbf_optax.layers import Reading

WIDE = 256
_STRIPS = 4  # at most, of a symmetric product; every one is compiled apart
_LEAST_ROWS = 576  # of a strip
_TALL = 3  # rows a column beyond which moving the product costs more
_HIGHEST = jax.lax.Precision.HIGHEST


def kept_order(n: int) -> int:
  """Order of the matrix that is kept for blocks of ``n`` elements."""
  return n if n <= WIDE else -(-n // 8) * 8


class SharedBlocks(MatrixBlocks):
  """One ``(*stack, n, n)`` matrix a layer."""

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> BlockState:
    return identity_state(reading.stack_shape, kept_order(reading.block_size), dtype)

  def accumulate(
    self, reading: Reading, state: BlockState, gradient: jax.Array, ema: jax.Array
  ) -> BlockState:
    columns = _stack_leading(reading, without_faults(gradient))
    columns = columns / math.sqrt(columns.shape[-1])  # before the product: no overflow
    mean = mean_product(columns)
    return state._replace(statistics=ema * state.statistics + (1 - ema) * mean)

  def precondition(
    self, reading: Reading, state: BlockState, vectors: jax.Array
  ) -> jax.Array:
    columns = _stack_leading(reading, vectors)
    product = jnp.matmul(state.inverse, placement.whole(columns), precision=_HIGHEST)
    product = jnp.moveaxis(product, -2, 0)[: len(vectors)]
    return product.reshape(vectors.shape)


def mean_product(columns: jax.Array) -> jax.Array:
  """``A A^T``; on a mesh every device computes the rows that it keeps of it.

  Halves of a divided product would have to be moved to be joined.
  """
  if not placement.may_be_divided():
    return symmetric_product(columns)
  columns = placement.whole(columns)
  return jnp.matmul(columns, columns.mT, precision=_HIGHEST)


def symmetric_product(columns: jax.Array) -> jax.Array:
  """``A A^T`` for ``(..., n, m)``, computing little more than its lower triangle.

  Strips of rows are computed up to the diagonal and mirrored beyond it, which spares up
  to three operations of eight, but moves the product once more: with few columns, or
  rows, a whole product is as fast.
  """
  n, m = columns.shape[-2:]
  count = min(_STRIPS, -(-n // _LEAST_ROWS))
  if count == 1 or n > _TALL * m:
    return jnp.matmul(columns, columns.mT, precision=_HIGHEST)
  edges = list(itertools.pairwise(n * index // count for index in range(count + 1)))
  strips = [
    jnp.matmul(columns[..., start:end, :], columns[..., :end, :].mT, precision=_HIGHEST)
    for start, end in edges
  ]
  rows = []
  for index, (start, end) in enumerate(edges):
    mirrored = [below[..., start:end].mT for below in strips[index + 1 :]]
    rows.append(jnp.concatenate([strips[index], *mirrored], axis=-1))
  return jnp.concatenate(rows, axis=-2)


def _stack_leading(reading: Reading, vectors: jax.Array) -> jax.Array:
  """``(n, *stack, *others)`` to ``(*stack, kept order, blocks of one layer)``."""
  columns = vectors.reshape(len(vectors), *reading.stack_shape, -1)
  spare = kept_order(len(vectors)) - len(vectors)
  columns = jnp.pad(columns, [(0, spare)] + [(0, 0)] * (columns.ndim - 1))
  return jnp.moveaxis(columns, 0, -2)
