"""The ``full`` estimator: every mini-block keeps its own matrix (Algorithm 2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbf_optax import packed
from mbf_optax.estimators import (
  Damping,
  Inverses,
  Matrices,
  beside,
  condition_number,
  over_layer,
  without_faults,
)
from mbf_optax.layers import Reading

PACKED_LIMIT = 64
_HIGHEST = jax.lax.Precision.HIGHEST


class BlockState(NamedTuple):
  """State of a layer that keeps matrices.

  Attributes:
    statistics: moving average of ``g g^T``, float32 or wider: packed triangles
      ``(n (n + 1) / 2, *batch)`` for small blocks, ``(*batch, n, n)`` for larger ones,
      ``(*stack, n, n)`` for a shared matrix.
    inverse: inverse of the damped statistics, in the same shape and dtype.
  """

  statistics: jax.Array
  inverse: jax.Array


class _Blocks:
  """What does not depend on how matrices are stored."""

  def with_inverse(
    self, state: BlockState, system: Matrices, inverses: Inverses
  ) -> BlockState:
    del system
    return state._replace(inverse=inverses.values)


class PackedBlocks(_Blocks):
  """Blocks of up to ``PACKED_LIMIT`` elements, as triangles with the batch trailing."""

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> BlockState:
    shape = packed.packed_size(reading.block_size), *reading.batch_shape
    identity = packed.identity(reading.block_size, reading.batch_shape, dtype)
    return BlockState(jnp.zeros(shape, dtype), identity)

  def accumulate(
    self, reading: Reading, state: BlockState, gradient: jax.Array, ema: jax.Array
  ) -> BlockState:
    del reading
    outer = packed.outer(without_faults(gradient))
    return state._replace(statistics=ema * state.statistics + (1 - ema) * outer)

  def system(
    self, reading: Reading, state: BlockState, weight: jax.Array, damping: Damping
  ) -> Matrices:
    corrected = state.statistics / weight
    diagonal = jnp.moveaxis(packed.diagonal(corrected), 0, -1)
    level = damping(over_layer(diagonal, reading))
    damped = packed.add_to_diagonal(corrected, beside(level, corrected[0]))
    return Matrices(damped, True, level)

  def precondition(
    self, reading: Reading, state: BlockState, vectors: jax.Array
  ) -> jax.Array:
    del reading
    return packed.matvec(state.inverse, vectors)

  def condition(self, state: BlockState, weight: jax.Array) -> jax.Array:
    statistics = packed.diagonal(state.statistics) / weight
    return condition_number(statistics, packed.diagonal(state.inverse))


class MatrixBlocks(_Blocks):
  """Larger blocks, as full matrices with the batch leading."""

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> BlockState:
    return identity_state(reading.batch_shape, reading.block_size, dtype)

  def accumulate(
    self, reading: Reading, state: BlockState, gradient: jax.Array, ema: jax.Array
  ) -> BlockState:
    del reading
    vectors = jnp.moveaxis(without_faults(gradient), 0, -1)
    outer = vectors[..., :, None] * vectors[..., None, :]
    return state._replace(statistics=ema * state.statistics + (1 - ema) * outer)

  def system(
    self, reading: Reading, state: BlockState, weight: jax.Array, damping: Damping
  ) -> Matrices:
    corrected = state.statistics / weight
    diagonal = jnp.diagonal(corrected, axis1=-2, axis2=-1)
    n, order = reading.block_size, corrected.shape[-1]
    mean = over_layer(diagonal, reading) * (order / n)  # what is spare is zero
    level = damping(mean)
    eye = jnp.eye(order, dtype=corrected.dtype)
    eye = eye.reshape(*[1] * (corrected.ndim - 2), *eye.shape)
    damped = corrected + beside(level, corrected) * eye
    if order > n:  # an average element, so that it is no extreme one
      spare = (jnp.arange(order) >= n).astype(eye.dtype)
      damped = damped + beside(mean, corrected) * eye * spare.reshape(
        *eye.shape[:-2], 1, order
      )
    return Matrices(damped, False, level)

  def precondition(
    self, reading: Reading, state: BlockState, vectors: jax.Array
  ) -> jax.Array:
    del reading
    columns = jnp.moveaxis(vectors, 0, -1)[..., None]
    product = jnp.matmul(state.inverse, columns, precision=_HIGHEST)
    return jnp.moveaxis(product[..., 0], -1, 0)

  def condition(self, state: BlockState, weight: jax.Array) -> jax.Array:
    statistics = _diagonals(state.statistics) / weight
    return condition_number(statistics, _diagonals(state.inverse))


def _diagonals(matrices: jax.Array) -> jax.Array:
  """``(*batch, n, n)`` to ``(n, *batch)``."""
  return jnp.moveaxis(jnp.diagonal(matrices, axis1=-2, axis2=-1), -1, 0)


def identity_state(
  batch: tuple[int, ...], n: int, dtype: jax.typing.DTypeLike
) -> BlockState:
  """Zero statistics and identity inverses ``(*batch, n, n)``."""
  shape = *batch, n, n
  return BlockState(
    jnp.zeros(shape, dtype), jnp.broadcast_to(jnp.eye(n, dtype=dtype), shape)
  )
