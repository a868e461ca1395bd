"""The ``full`` estimator: every mini-block keeps its own matrix (Algorithm 2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mbf_optax._estimators import axes
from mbf_optax._estimators.estimator import (
  Blocks,
  Operations,
  condition_number,
  spread_of,
)
from mbf_optax._linalg import triangles
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.products import diagonals, multiply
from mbf_optax._linalg.statistics import Regularizer, Statistics, Stored
from mbf_optax._partition.blocks import Pieces, cut, joined
from mbf_optax._tree.shapes import Array, Float

PACKED_LIMIT = 64


class BlockState(NamedTuple):
  """State of a layer that keeps matrices.

  Attributes:
    statistics: moving average of ``g g^T``, float32 or wider: packed triangles ``(t,
      *batch)`` for small blocks, ``(*batch, n, n)`` for larger ones, ``(*stack, parts,
      n, n)`` for matrices that blocks share.
    inverse: the preconditioner, in the same shape: the inverse of the damped statistics
      under ``mbf``, a power of it under ``mbf_adam``.
  """

  statistics: Stored
  inverse: Stored


class _FullBlocks(Blocks):
  """What does not depend on how matrices are stored."""

  def accumulate(
    self, state: BlockState, entry: Stored, ema: Float[Array, ""]
  ) -> BlockState:
    return averaged(state, entry, ema)

  def with_inverses(self, state: BlockState, results: list[Results]) -> BlockState:
    return state._replace(inverse=results[0].values)

  def operations(self) -> Operations:
    n, blocks = self.reading.block_size, self.reading.blocks
    return Operations(2 * n * n * blocks, 3 * n * n * blocks, 2 * n**3 * blocks)

  def _statistics(self, values: Stored, is_packed: bool) -> list[Statistics]:
    """Of matrices that each see one gradient vector a step."""
    order = np.full([1] * len(self.reading.batch_shape), self.reading.block_size)
    stacked = tuple(range(len(self.reading.stack_shape)))
    return [Statistics(values, is_packed, order, 1, stacked)]


class PackedBlocks(_FullBlocks):
  """Blocks of up to ``PACKED_LIMIT`` elements, as triangles with the batch trailing."""

  def init(self, dtype: jax.typing.DTypeLike) -> BlockState:
    n, batch = self.reading.block_size, self.reading.batch_shape
    statistics = jnp.zeros((triangles.packed_size(n), *batch), dtype)
    return BlockState(statistics, triangles.identity(n, batch, dtype))

  def entry(self, gradient: Pieces) -> Stored:
    return triangles.outer(joined(gradient))

  def statistics(self, state: BlockState) -> list[Statistics]:
    return self._statistics(state.statistics, is_packed=True)

  def precondition(
    self, state: BlockState, vectors: Pieces, regularize: Regularizer
  ) -> Pieces:
    del regularize
    return cut(self.reading, triangles.matvec(state.inverse, joined(vectors)))

  def condition(
    self, state: BlockState, correction: Float[Array, ""]
  ) -> Float[Array, "*batch"]:
    statistics = triangles.diagonal(state.statistics) / correction
    return condition_number(statistics, triangles.diagonal(state.inverse))

  def spread(self, state: BlockState) -> Float[Array, "*batch"]:
    return spread_of(triangles.diagonal(state.inverse))

  def shardings(self, state: BlockState, sharding: NamedSharding) -> Any:
    del state
    placed = axes.placed(sharding.mesh, None, *axes.of_blocks(self.reading, sharding))
    return BlockState(placed, placed)


class MatrixBlocks(_FullBlocks):
  """Larger blocks, as full matrices with the batch leading."""

  def init(self, dtype: jax.typing.DTypeLike) -> BlockState:
    return identity_state(self.reading.batch_shape, self.reading.block_size, dtype)

  def entry(self, gradient: Pieces) -> Float[Array, "*batch n n"]:
    vectors = jnp.moveaxis(joined(gradient), 0, -1)
    return vectors[..., :, None] * vectors[..., None, :]

  def statistics(self, state: BlockState) -> list[Statistics]:
    return self._statistics(state.statistics, is_packed=False)

  def precondition(
    self, state: BlockState, vectors: Pieces, regularize: Regularizer
  ) -> Pieces:
    del regularize
    columns = jnp.moveaxis(joined(vectors), 0, -1)[..., None]
    product = multiply(state.inverse, columns)
    return cut(self.reading, jnp.moveaxis(product[..., 0], -1, 0))

  def condition(
    self, state: BlockState, correction: Float[Array, ""]
  ) -> Float[Array, "*batch"]:
    statistics = diagonals(state.statistics) / correction
    return condition_number(statistics, diagonals(state.inverse))

  def spread(self, state: BlockState) -> Float[Array, "*batch"]:
    return spread_of(diagonals(state.inverse))

  def shardings(self, state: BlockState, sharding: NamedSharding) -> Any:
    del state
    placed = axes.placed(sharding.mesh, *axes.of_blocks(self.reading, sharding))
    return BlockState(placed, placed)


def averaged(state: BlockState, entry: Stored, ema: Float[Array, ""]) -> BlockState:
  """State with one more entry in the moving average of its statistics."""
  return state._replace(statistics=ema * state.statistics + (1 - ema) * entry)


def identity_state(
  batch: tuple[int, ...], n: int, dtype: jax.typing.DTypeLike
) -> BlockState:
  """Zero statistics and identity inverses ``(*batch, n, n)``."""
  shape = *batch, n, n
  return BlockState(
    jnp.zeros(shape, dtype), jnp.broadcast_to(jnp.eye(n, dtype=dtype), shape)
  )
