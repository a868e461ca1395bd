"""The ``shared`` estimator: one matrix for all blocks of a layer.

The paper's spatial averaging (section 5): the average of the layer's mini-blocks
stands in for each of them. A wide layer is cut into equal parts of at most
``block_limit`` inputs with a matrix each, so that cost and memory grow linearly with
its width (as Anil et al., 2021, cut Shampoo's).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mbf_optax._estimators import axes
from mbf_optax._estimators.estimator import (
  Blocks,
  Norms,
  Operations,
  condition_number,
  root,
  spread_of,
)
from mbf_optax._estimators.full import (
  BlockState,
  averaged,
  identity_state,
)
from mbf_optax._linalg import products
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.products import diagonals
from mbf_optax._linalg.statistics import Regularizer, Statistics
from mbf_optax._mesh import devices
from mbf_optax._partition.blocks import Pieces
from mbf_optax._partition.layer import Reading
from mbf_optax._tree.shapes import Array, Float, Int

_WIDE = 256  # rows beyond which a whole matrix is padded to divide evenly over a mesh


class Columns(NamedTuple):
  """Block vectors of a layer as columns of a matrix.

  The bias is a row more. It stays apart, since joining it would copy the weights.

  Attributes:
    weights: ``(*stack, n, m)``.
    bias: ``(*stack, 1, m)`` where it is joined.
  """

  weights: Float[Array, "*stack n m"]
  bias: Float[Array, "*stack 1 m"] | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
  """How ``n`` rows of weights are cut into parts, and a bias added to the last.

  Attributes:
    n: number of rows of weights.
    limit: largest number of them in a part.
    has_bias: whether there is one row more.
  """

  n: int
  limit: int
  has_bias: bool = False

  @property
  def count(self) -> int:
    """Number of parts, one at least: a bias may be all that there is."""
    return max(1, -(-self.n // self.limit))

  @property
  def rows(self) -> int:
    """Rows of weights in every part but the last, which may have fewer."""
    return -(-self.n // self.count)

  @property
  def is_even(self) -> bool:
    """Whether the weights fill all parts; if not, the bias fills a row of the last."""
    return self.n == self.count * self.rows

  @property
  def kept(self) -> int:
    """Order of the matrix that is kept for a part.

    A wide undivided matrix has its order padded to a multiple of eight, so that its
    rows divide evenly over a mesh although a bias makes them odd.
    """
    order = self.rows + (self.has_bias and self.is_even)
    if self.count > 1 or order <= _WIDE:
      return order
    return -(-order // 8) * 8

  def orders(self, stack_ndim: int) -> Int[np.ndarray, "*ones parts"]:
    """Rows of every part without padding."""
    rows = np.full(self.count, self.rows)
    rows[-1] = self.n - (self.count - 1) * self.rows + self.has_bias
    return rows.reshape(*[1] * stack_ndim, self.count)

  def split(self, columns: Columns) -> Float[Array, "*stack parts kept m"]:
    """Columns cut into parts, the bias in the last, padded with zeros."""
    weights, bias = columns
    if bias is None:
      return products.split_rows(weights, self.count, self.kept)
    if not self.is_even:
      whole = jnp.concatenate([weights, bias], axis=-2)
      return products.split_rows(whole, self.count, self.kept)
    below = self.in_the_last(bias, self.kept - self.rows)
    return jnp.concatenate([self.evenly(weights), below], axis=-2)

  def join(self, split: Float[Array, "*stack parts kept m"]) -> Columns:
    """Inverse of :meth:`split`."""
    if self.has_bias and self.is_even:
      weights = split[..., : self.rows, :]
      weights = weights.reshape(*split.shape[:-3], self.n, split.shape[-1])
      return Columns(weights, split[..., -1, self.rows : self.rows + 1, :])
    whole = products.join_rows(split, self.n + self.has_bias)
    weights, bias = whole[..., : self.n, :], whole[..., self.n :, :]
    return Columns(weights, bias if self.has_bias else None)

  def evenly(
    self, weights: Float[Array, "*stack n m"]
  ) -> Float[Array, "*stack parts rows m"]:
    """Weights that fill all parts, cut without a copy."""
    *stack, _, m = weights.shape
    return weights.reshape(*stack, self.count, self.rows, m)

  def in_the_last(
    self, matrix: Float[Array, "*stack rows m"], rows: int
  ) -> Float[Array, "*stack parts {rows} m"]:
    """A matrix in the last part, padded with zeros below, and zeros in the others."""
    margin = [(0, 0)] * (matrix.ndim - 2)
    margin += [(self.count - 1, 0), (0, rows - matrix.shape[-2]), (0, 0)]
    return jnp.pad(matrix[..., None, :, :], margin)

  def init(
    self, stack_shape: tuple[int, ...], dtype: jax.typing.DTypeLike
  ) -> BlockState:
    """State of one matrix a part before the first gradient."""
    return identity_state((*stack_shape, self.count), self.kept, dtype)

  def mean_product(self, columns: Columns) -> Float[Array, "*stack parts kept kept"]:
    """The mean over the columns of their outer products."""
    weights, bias = columns
    if bias is not None and self._is_bordered():
      return self._bordered_product(weights, bias) / weights.shape[-1]
    return products.mean_product(self.split(columns))

  def _is_bordered(self) -> bool:
    """Whether a bias is computed with as a border of what the weights fill.

    On a mesh every device computes rows of a product of whole columns.
    """
    return self.is_even and not devices.may_be_divided()

  def _bordered_product(
    self, weights: Float[Array, "*stack n m"], bias: Float[Array, "*stack 1 m"]
  ) -> Float[Array, "*stack parts kept kept"]:
    """``V V^T`` of every part, from products with the weights as they are."""
    weights, spare = self.evenly(weights), self.kept - self.rows
    # Sums, since a CPU compiles a kernel for every product with a vector.
    beside = jnp.sum(weights[..., -1, :, :] * bias, -1, keepdims=True)
    half_corner = jnp.sum(bias * bias, -1, keepdims=True) / 2
    column = jnp.concatenate([beside, half_corner], axis=-2)
    # Without a barrier a GPU adds up each of these sums in the thread that needs it.
    column = jax.lax.optimization_barrier(column)
    border = self.in_the_last(column, self.kept)
    margin = [(0, 0)] * (border.ndim - 1)
    border = jnp.pad(border, [*margin, (self.rows, spare - 1)])
    square = products.symmetric_product(weights)
    square = jnp.pad(square, [*margin[1:], (0, spare), (0, spare)])
    return square + border + border.mT

  def statistics(self, state: BlockState, sharers: int) -> Statistics:
    """Matrices that each see ``sharers`` gradient vectors a step."""
    stacked = state.statistics.ndim - 3
    order, stack_axes = self.orders(stacked), tuple(range(stacked))
    return Statistics(state.statistics, False, order, sharers, stack_axes)

  def apply(self, state: BlockState, columns: Columns) -> Columns:
    """``P V`` for columns ``V``."""
    weights, bias = columns
    if bias is None or not self._is_bordered():
      return self.join(products.apply(state.inverse, self.split(columns)))
    inverse, n = state.inverse, self.rows
    product = products.multiply(inverse[..., :n], self.evenly(weights))
    border = self.in_the_last(inverse[..., -1, :, n : n + 1], self.kept)
    return self.join(product + border * bias[..., None, :, :])

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
  def joins_alike(self) -> bool:
    return True

  @property
  def parts(self) -> Parts:
    """How block vectors are cut; the bias comes on top of the limit."""
    has_bias = self.reading.bias_path is not None
    n = self.reading.block_size - has_bias
    return Parts(n, self.reading.layer.block_limit, has_bias)

  def columns(self, vectors: Pieces) -> Columns:
    """Block vectors as columns, the ``m`` blocks of a layer in one axis."""
    return Columns(*map(self._as_columns, vectors))

  def _as_columns(self, piece: Float[Array, "n *batch"]) -> Float[Array, "*stack n m"]:
    columns = piece.reshape(len(piece), *self.reading.stack_shape, -1)
    return jnp.moveaxis(columns, 0, -2)

  def vectors(self, columns: Columns) -> Pieces:
    """Inverse of :meth:`columns`."""
    pieces = [jnp.moveaxis(piece, -2, 0) for piece in columns if piece is not None]
    return [p.reshape(len(p), *self.reading.batch_shape) for p in pieces]

  def operations_of(self, parts: Parts) -> Operations:
    """Floating-point operations of the matrices of some parts."""
    reading = self.reading
    orders = parts.orders(0)
    product = 2 * int(max(orders)) * reading.block_size * reading.blocks
    stacked = reading.blocks // reading.blocks_per_layer
    return Operations(product, product, 2 * int(sum(orders**3)) * stacked)


class SharedBlocks(ColumnBlocks):
  """Matrices ``(*stack, parts, n, n)``, one for all blocks of a layer."""

  def init(self, dtype: jax.typing.DTypeLike) -> BlockState:
    return self.parts.init(self.reading.stack_shape, dtype)

  def entry(self, gradient: Pieces) -> Float[Array, "*stack parts n n"]:
    return self.parts.mean_product(self.columns(gradient))

  def accumulate(
    self,
    state: BlockState,
    entry: Float[Array, "*stack parts n n"],
    ema: Float[Array, ""],
  ) -> BlockState:
    return averaged(state, entry, ema)

  def statistics(self, state: BlockState) -> list[Statistics]:
    return [self.parts.statistics(state, self.reading.blocks_per_layer)]

  def with_inverses(self, state: BlockState, results: list[Results]) -> BlockState:
    return state._replace(inverse=results[0].values)

  def precondition(
    self, state: BlockState, vectors: Pieces, regularize: Regularizer
  ) -> Pieces:
    del regularize
    return self.vectors(self.parts.apply(state, self.columns(vectors)))

  def norms(self, vectors: Pieces) -> Norms:
    """By neuron and part, since every part has a matrix of its own."""
    parts, (weights, bias) = self.parts, self.columns(vectors)
    split = products.split_rows(weights, parts.count, parts.rows)
    squares = jnp.sum(split * split, axis=-2, keepdims=True)
    if bias is not None:
      squares = squares + parts.in_the_last(bias * bias, 1)
    of_parts = root(squares)
    of_weights = jnp.broadcast_to(of_parts, split.shape)
    of_bias = None if bias is None else of_parts[..., -1, :, :]
    return self.vectors(Columns(products.join_rows(of_weights, parts.n), of_bias))

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
