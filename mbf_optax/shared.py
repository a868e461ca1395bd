"""The ``shared`` estimator: one matrix for all blocks of a layer.

The paper's spatial averaging (section 5): the average of the layer's mini-blocks
stands in for each of them.
"""

import math

import jax
import jax.numpy as jnp

from mbf_optax.estimators import without_faults
from mbf_optax.full import BlockState, MatrixBlocks, identity_state
from mbf_optax.layers import Reading

_HIGHEST = jax.lax.Precision.HIGHEST


class SharedBlocks(MatrixBlocks):
  """One ``(*stack, n, n)`` matrix a layer."""

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> BlockState:
    return identity_state(reading.stack_shape, reading.block_size, dtype)

  def accumulate(
    self, reading: Reading, state: BlockState, gradient: jax.Array, ema: jax.Array
  ) -> BlockState:
    columns = _stack_leading(reading, without_faults(gradient))
    columns = columns / math.sqrt(columns.shape[-1])  # before the product: no overflow
    mean = jnp.matmul(columns, columns.mT, precision=_HIGHEST)
    return state._replace(statistics=ema * state.statistics + (1 - ema) * mean)

  def precondition(
    self, reading: Reading, state: BlockState, vectors: jax.Array
  ) -> jax.Array:
    columns = _stack_leading(reading, vectors)
    product = jnp.matmul(state.inverse, columns, precision=_HIGHEST)
    product = jnp.moveaxis(product, -2, 0)
    return product.reshape(vectors.shape)


def _stack_leading(reading: Reading, vectors: jax.Array) -> jax.Array:
  """``(n, *stack, *others)`` to ``(*stack, n, blocks of one layer)``."""
  columns = vectors.reshape(len(vectors), *reading.stack_shape, -1)
  return jnp.moveaxis(columns, 0, -2)
