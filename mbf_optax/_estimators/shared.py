"""The ``shared`` estimator: one matrix for all blocks of a layer.

The paper's spatial averaging (section 5): the average of the layer's mini-blocks
stands in for each of them. A wide layer is cut into equal parts of at most
``block_limit`` inputs with a matrix each, so that cost and memory grow linearly with
its width (as Anil et al., 2021, cut Shampoo's).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mbf_optax._estimators import axes
from mbf_optax._estimators.estimator import (
  Blocks,
  Operations,
  condition_number,
  lengths,
  spread_of,
)
from mbf_optax._estimators.full import (
  BlockState,
  identity_state,
)
from mbf_optax._linalg import products
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.products import diagonals
from mbf_optax._linalg.statistics import Regularizer, Statistics
from mbf_optax._partition.blocks import Pieces
from mbf_optax._partition.layer import Reading
from mbf_optax._tree.shapes import Array, Float, Int

_WIDE = 256  # rows beyond which a whole matrix is padded to divide evenly over a mesh


@dataclasses.dataclass(frozen=True)
class Parts:
  """How ``n`` rows are cut into parts.

  Attributes:
    n: number of rows.
    limit: largest number of rows of a part.
  """

  n: int
  limit: int

  @property
  def count(self) -> int:
    """Number of parts."""
    return -(-self.n // self.limit)

  @property
  def rows(self) -> int:
    """Rows of every part but the last, which may have fewer."""
    return -(-self.n // self.count)

  @property
  def kept(self) -> int:
    """Order of the matrix that is kept for a part.

    A wide undivided matrix has its order padded to a multiple of eight, so that its
    rows divide evenly over a mesh although a bias makes them odd.
    """
    if self.count > 1 or self.n <= _WIDE:
      return self.rows
    return -(-self.n // 8) * 8

  def orders(self, stack_ndim: int) -> Int[np.ndarray, "*ones parts"]:
    """Rows of every part without padding."""
    rows = np.full(self.count, self.rows)
    rows[-1] = self.n - (self.count - 1) * self.rows
    return rows.reshape(*[1] * stack_ndim, self.count)

  def split(
    self, columns: Float[Array, "*stack n m"]
  ) -> Float[Array, "*stack parts kept m"]:
    """Columns cut into parts, padded with zeros."""
    return products.split_rows(columns, self.count, self.kept)

  def join(
    self, columns: Float[Array, "*stack parts kept m"]
  ) -> Float[Array, "*stack n m"]:
    """Inverse of :meth:`split`."""
    return products.join_rows(columns, self.n)

  def init(
    self, stack_shape: tuple[int, ...], dtype: jax.typing.DTypeLike
  ) -> BlockState:
    """State of one matrix a part before the first gradient."""
    return identity_state((*stack_shape, self.count), self.kept, dtype)

  def accumulate(
    self, state: BlockState, columns: Float[Array, "*stack n m"], ema: Float[Array, ""]
  ) -> BlockState:
    """State with the mean over the columns of their outer products."""
    mean = products.mean_product(self.split(columns))
    return state._replace(statistics=ema * state.statistics + (1 - ema) * mean)

  def statistics(self, state: BlockState, sharers: int) -> Statistics:
    """Matrices that each see ``sharers`` gradient vectors a step."""
    stacked = state.statistics.ndim - 3
    order, stack_axes = self.orders(stacked), tuple(range(stacked))
    return Statistics(state.statistics, False, order, sharers, stack_axes)

  def apply(
    self, state: BlockState, columns: Float[Array, "*stack n m"]
  ) -> Float[Array, "*stack n m"]:
    """``P V`` for columns ``V``."""
    return self.join(products.apply(state.inverse, self.split(columns)))

  def inverse_diagonals(self, state: BlockState) -> Float[Array, "kept *stack parts"]:
    """Diagonals of inverses, the first row's for padding."""
    found = diagonals(state.inverse)
    rows = np.arange(self.kept).reshape(-1, *[1] * (found.ndim - 1))
    is_real = rows < self.orders(found.ndim - 2)[None]
    return jnp.where(is_real, found, found[:1])

  def shardings(self, reading: Reading, sharding: NamedSharding) -> Any:
    """Where statistics and inverses lie."""
    names = axes.of_shared(reading, sharding, self.count, self.kept)
    placed = axes.placed(sharding.mesh, *names)
    return BlockState(placed, placed)


class ColumnBlocks(Blocks):
  """Layers that are matrices: each block vector is a column."""

  @property
  def parts(self) -> Parts:
    """How block vectors are cut; the bias comes on top of the limit."""
    limit = self.reading.layer.block_limit + (self.reading.bias_path is not None)
    return Parts(self.reading.block_size, limit)

  def columns(self, vectors: Float[Array, "n *batch"]) -> Float[Array, "*stack n m"]:
    """Block vectors as columns, the ``m`` blocks of a layer in one axis."""
    columns = vectors.reshape(len(vectors), *self.reading.stack_shape, -1)
    return jnp.moveaxis(columns, 0, -2)

  def vectors(self, columns: Float[Array, "*stack n m"]) -> Float[Array, "n *batch"]:
    """Inverse of :meth:`columns`."""
    vectors = jnp.moveaxis(columns, -2, 0)
    return vectors.reshape(len(vectors), *self.reading.batch_shape)

  def operations_of(self, parts: Parts) -> Operations:
    """Floating-point operations of the matrices of some parts."""
    reading = self.reading
    product = 2 * parts.rows * reading.block_size * reading.blocks
    stacked = reading.blocks // reading.blocks_per_layer
    return Operations(product, product, 2 * parts.rows**3 * parts.count * stacked)


class SharedBlocks(ColumnBlocks):
  """Matrices ``(*stack, parts, n, n)``, one for all blocks of a layer."""

  def init(self, dtype: jax.typing.DTypeLike) -> BlockState:
    return self.parts.init(self.reading.stack_shape, dtype)

  def accumulate(
    self, state: BlockState, gradient: Float[Array, "n *batch"], ema: Float[Array, ""]
  ) -> BlockState:
    return self.parts.accumulate(state, self.columns(gradient), ema)

  def statistics(self, state: BlockState) -> list[Statistics]:
    return [self.parts.statistics(state, self.reading.blocks_per_layer)]

  def with_inverses(self, state: BlockState, results: list[Results]) -> BlockState:
    return state._replace(inverse=results[0].values)

  def precondition(
    self, state: BlockState, vectors: Float[Array, "n *batch"], regularize: Regularizer
  ) -> Float[Array, "n *batch"]:
    del regularize
    return self.vectors(self.parts.apply(state, self.columns(vectors)))

  def norms(self, vectors: Pieces) -> Float[Array, "n *batch"]:
    """By neuron and part, since every part has a matrix of its own."""
    parts = self.parts
    split = parts.split(self.columns(jnp.concatenate(vectors)))
    rows_first = jnp.moveaxis(split, -2, 0)
    of_parts = jnp.moveaxis(lengths((rows_first,), (0,)), 0, -2)
    of_parts = jnp.broadcast_to(of_parts, split.shape)
    return self.vectors(parts.join(of_parts))

  def condition(
    self, state: BlockState, correction: Float[Array, ""]
  ) -> Float[Array, "*stack parts"]:
    statistics = diagonals(state.statistics) / correction
    return condition_number(statistics, self.parts.inverse_diagonals(state))

  def spread(self, state: BlockState) -> Float[Array, "*stack parts"]:
    return spread_of(self.parts.inverse_diagonals(state))

  def shardings(self, state: BlockState, sharding: NamedSharding) -> Any:
    del state
    return self.parts.shardings(self.reading, sharding)

  def operations(self) -> Operations:
    return self.operations_of(self.parts)
