"""The ``two_sided`` estimator: matrices of a layer's inputs and of its outputs.

The inputs' matrix is that of ``shared``: the mean over the outputs of the inputs' outer
products. The outputs' matrix is the mean over the inputs of the outputs' outer
products, as in Shampoo (Gupta, Koren & Singer, 2018). A gradient is multiplied by both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mbf_optax._estimators.estimator import (
  INPUTS,
  OUTPUTS,
  Norms,
  Operations,
  condition_number,
  lengths,
  spread_of,
)
from mbf_optax._estimators.full import BlockState, averaged
from mbf_optax._estimators.shared import ColumnBlocks, Columns, Parts
from mbf_optax._linalg import products
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.products import diagonals
from mbf_optax._linalg.statistics import Regularizer, Statistics
from mbf_optax._mesh import devices
from mbf_optax._partition.blocks import Pieces
from mbf_optax._tree.shapes import Array, Float

Sides = tuple[Float[Array, "*stack _ n n"], Float[Array, "*stack _ m m"]]
"""Mean outer products of the inputs and of the outputs."""


class TwoSidedState(NamedTuple):
  """State of a layer with matrices on both sides.

  Attributes:
    inputs: matrices ``(*stack, parts, n, n)`` of the inputs.
    outputs: matrices ``(*stack, parts, m, m)`` of the outputs.
  """

  inputs: BlockState
  outputs: BlockState


class TwoSidedBlocks(ColumnBlocks):
  """One length for the whole layer, since the outputs' matrix mixes its blocks."""

  @property
  def sides(self) -> tuple[str, ...]:
    return (INPUTS, OUTPUTS)

  @property
  def output_parts(self) -> Parts:
    """How the outputs are cut."""
    return Parts(self.reading.blocks_per_layer, self.reading.layer.block_limit)

  def init(self, dtype: jax.typing.DTypeLike) -> TwoSidedState:
    stack = self.reading.stack_shape
    return TwoSidedState(
      self.parts.init(stack, dtype), self.output_parts.init(stack, dtype)
    )

  def entry(self, gradient: Pieces) -> Sides:
    columns = self.columns(gradient)
    return self.parts.mean_product(columns), self._mean_over_inputs(columns)

  def accumulate(
    self, state: TwoSidedState, entry: Sides, ema: Float[Array, ""]
  ) -> TwoSidedState:
    sides = zip(state, entry, strict=True)
    return TwoSidedState(*(averaged(side, mean, ema) for side, mean in sides))

  def _mean_over_inputs(
    self, columns: Columns
  ) -> Float[Array, "*stack parts kept kept"]:
    """The mean outer product of the rows of weights, and of the bias."""
    if devices.may_be_divided():
      return products.mean_product(self.output_parts.split(_transposed(columns)))
    weights, bias = columns
    total = products.gram(self._cut(weights))
    if bias is not None:
      row = self._cut(bias)
      total = total + row.mT * row
    return total / self.reading.block_size

  def statistics(self, state: TwoSidedState) -> list[Statistics]:
    return [
      self.parts.statistics(state.inputs, self.reading.blocks_per_layer),
      self.output_parts.statistics(state.outputs, self.reading.block_size),
    ]

  def inverses(self, state: TwoSidedState) -> list[Float[Array, "..."]]:
    return [state.inputs.inverse, state.outputs.inverse]

  def with_inverses(
    self, state: TwoSidedState, results: list[Results]
  ) -> TwoSidedState:
    inputs, outputs = results
    return TwoSidedState(
      state.inputs._replace(inverse=inputs.values),
      state.outputs._replace(inverse=outputs.values),
    )

  def precondition(
    self, state: TwoSidedState, vectors: Pieces, regularize: Regularizer
  ) -> Pieces:
    del regularize
    # In this order what a bias adds to the weights is added while they are scaled.
    columns = self._times_outputs(state.outputs, self.columns(vectors))
    return self.vectors(self.parts.apply(state.inputs, columns))

  def _times_outputs(self, state: BlockState, columns: Columns) -> Columns:
    if devices.may_be_divided():
      whole = self.output_parts.apply(state, _transposed(columns)).weights.mT
      n = columns.weights.shape[-2]
      below = None if columns.bias is None else whole[..., n:, :]
      return Columns(whole[..., :n, :], below)
    weights, bias = columns
    scaled = self._joined(products.multiply(self._cut(weights), state.inverse))
    if bias is None:
      return Columns(scaled)
    below = products.rows_times(self._cut(bias), state.inverse)
    return Columns(scaled, self._joined(below))

  def _joined(
    self, rows: Float[Array, "*stack parts k kept"]
  ) -> Float[Array, "*stack k m"]:
    """Inverse of :meth:`_cut`."""
    split = jnp.moveaxis(rows, -3, -2)
    return split.reshape(*split.shape[:-2], -1)[..., : self.output_parts.n]

  def _cut(
    self, piece: Float[Array, "*stack k m"]
  ) -> Float[Array, "*stack parts k kept"]:
    """Rows of weights, or the bias, cut into parts of outputs, which lead.

    Rows stay rows: a transposed copy takes a CPU several times as long as a plain one.
    """
    parts = self.output_parts
    cut = self._padded(piece).reshape(*piece.shape[:-1], parts.count, parts.kept)
    return jnp.moveaxis(cut, -2, -3)

  def _padded(self, piece: Float[Array, "*stack k m"]) -> Float[Array, "*stack k _"]:
    """With zeros, so that it fills all parts."""
    parts = self.output_parts
    spare = parts.count * parts.kept - parts.n
    if not spare:
      return piece
    return jnp.pad(piece, [(0, 0)] * (piece.ndim - 1) + [(0, spare)])

  def norms(self, vectors: Pieces) -> Norms:
    stacked = len(self.reading.stack_shape)
    of_layer = lengths(vectors, (0, *range(1 + stacked, vectors[0].ndim)))
    return [of_layer] * len(vectors)

  def condition(
    self, state: TwoSidedState, correction: Float[Array, ""]
  ) -> Float[Array, "*stack parts"]:
    statistics = diagonals(state.inputs.statistics) / correction
    return condition_number(statistics, self.parts.inverse_diagonals(state.inputs))

  def spread(self, state: TwoSidedState) -> Float[Array, ""]:
    inputs = spread_of(self.parts.inverse_diagonals(state.inputs))
    outputs = spread_of(self.output_parts.inverse_diagonals(state.outputs))
    return jnp.maximum(jnp.max(inputs), jnp.max(outputs))

  def shardings(self, state: TwoSidedState, sharding: NamedSharding) -> Any:
    del state
    return TwoSidedState(
      self.parts.shardings(self.reading, sharding),
      self.output_parts.shardings(self.reading, sharding),
    )

  def operations(self) -> Operations:
    sides = map(self.operations_of, (self.parts, self.output_parts))
    return Operations(*map(sum, zip(*sides, strict=True)))


def _transposed(columns: Columns) -> Columns:
  """Rows of weights and the bias as columns."""
  whole = [piece for piece in columns if piece is not None]
  return Columns(jnp.concatenate(whole, axis=-2).mT)
