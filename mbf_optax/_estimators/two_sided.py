"""The ``two_sided`` estimator: matrices of a dense layer's inputs and of its outputs.

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
  Operations,
  condition_number,
  lengths,
  spread_of,
)
from mbf_optax._estimators.full import BlockState
from mbf_optax._estimators.shared import ColumnBlocks, Parts
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.products import diagonals
from mbf_optax._linalg.statistics import Regularizer, Statistics
from mbf_optax._partition.blocks import Pieces
from mbf_optax._tree.shapes import Array, Float


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

  def accumulate(
    self,
    state: TwoSidedState,
    gradient: Float[Array, "n *batch"],
    ema: Float[Array, ""],
  ) -> TwoSidedState:
    columns = self.columns(gradient)
    return TwoSidedState(
      self.parts.accumulate(state.inputs, columns, ema),
      self.output_parts.accumulate(state.outputs, columns.mT, ema),
    )

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
    self,
    state: TwoSidedState,
    vectors: Float[Array, "n *batch"],
    regularize: Regularizer,
  ) -> Float[Array, "n *batch"]:
    del regularize
    columns = self.parts.apply(state.inputs, self.columns(vectors))
    return self.vectors(self.output_parts.apply(state.outputs, columns.mT).mT)

  def norms(self, vectors: Pieces) -> Float[Array, "1 *#batch"]:
    stacked = len(self.reading.stack_shape)
    return lengths(vectors, (0, *range(1 + stacked, vectors[0].ndim)))

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
