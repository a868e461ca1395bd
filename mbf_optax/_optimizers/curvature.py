"""The curvature of a whole parameter tree: every layer and its estimator."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from mbf_optax import (
  checks,
  elementwise,
  full,
  low_rank,
  placement,
  refresh,
  shared,
  tree,
)
from mbf_optax.estimators import Damping, Estimator
from mbf_optax.layers import Reading, from_blocks, to_blocks, wide_dtype

Layers = dict[str, Any]
"""State of every layer by the path of its weight array."""

# Relative damping stays positive down to the smallest gradients; for a layer without
# any gradient so far it is one, so that the next one is not multiplied by 1 / _FLOOR.
_FLOOR = 1e-30


def estimator_of(reading: Reading) -> Estimator:
  """The estimator that serves a layer of blocks."""
  if reading.layer.estimator == "shared":
    return shared.SharedBlocks()
  if reading.layer.estimator == "low_rank":
    return low_rank.LowRankBlocks()
  if reading.block_size <= full.PACKED_LIMIT:
    return full.PackedBlocks()
  return full.MatrixBlocks()


@dataclasses.dataclass(frozen=True)
class Curvature:
  """Statistics and inverses of all layers under one set of hyperparameters.

  Attributes:
    damping: a number or a schedule.
    relative_damping: whether it multiplies a layer's mean diagonal.
    method: how matrices are inverted.
    inverse_dtype: in which inverses are kept; ``None`` is that of the statistics.
  """

  damping: optax.ScalarOrSchedule
  relative_damping: bool
  method: refresh.Method
  inverse_dtype: jax.typing.DTypeLike | None = None

  def __post_init__(self) -> None:
    checks.positive("damping", self.damping)
    checks.choice("inverse", self.method, get_args(refresh.Method))
    checks.floating("inverse_dtype", self.inverse_dtype)

  def init(self, readings: Sequence[Reading], leaves: tree.Leaves) -> Layers:
    """States before the first gradient."""
    layers = {}
    for reading in readings:
      dtype = wide_dtype(leaves[reading.path].dtype)
      if reading.layer.elementwise:
        layers[reading.path] = elementwise.init(reading, dtype)
      else:
        state = estimator_of(reading).init(reading, dtype)
        layers[reading.path] = self._stored(state)
    return layers

  def accumulate(
    self,
    readings: Sequence[Reading],
    layers: Layers,
    gradients: tree.Leaves,
    ema: jax.typing.ArrayLike,
  ) -> Layers:
    """The states of the given layers with one more gradient in their statistics."""
    layers = dict(layers)
    for reading in readings:
      state = layers[reading.path]
      gradient = to_blocks(reading, gradients)
      if reading.layer.elementwise:
        add = elementwise.accumulate
      else:
        gradient = gradient.astype(_dtype(state))
        add = functools.partial(estimator_of(reading).accumulate, reading)
      layers[reading.path] = add(state, gradient, placement.scalar(ema, _dtype(state)))
    return layers

  def refresh(
    self,
    readings: Sequence[Reading],
    layers: Layers,
    weight: jax.Array,
    count: jax.Array,
  ) -> Layers:
    """The states of the given layers with new inverses, where those are finite.

    Args:
      readings: layers of blocks.
      layers: states by path, of at least these layers.
      weight: the bias correction ``c`` of the statistics.
      count: the step at which a damping schedule is read.
    """
    systems = []
    for reading in readings:
      state = layers[reading.path]
      level = self._level(count, _dtype(state))
      correction = weight.astype(_dtype(state))
      estimator = estimator_of(reading)
      systems.append(estimator.system(reading, state, correction, level))
    previous = [computed(layers[reading.path]).inverse for reading in readings]
    inverses = refresh.invert(systems, previous, self.method)
    layers = dict(layers)
    for reading, system, new in zip(readings, systems, inverses, strict=True):
      state = computed(layers[reading.path])
      state = estimator_of(reading).with_inverse(state, system, new)
      layers[reading.path] = self._stored(state)
    return layers

  def precondition(
    self,
    readings: Sequence[Reading],
    layers: Layers,
    momentum: tree.Leaves,
    weight: jax.Array,
    count: jax.Array,
  ) -> tree.Leaves:
    """Directions ``P m`` by path; ``weight`` corrects the element-by-element kind."""
    directions: tree.Leaves = {}
    for reading in readings:
      state = layers[reading.path]
      blocks = to_blocks(reading, momentum)
      if reading.layer.elementwise:
        level = self._level(count, _dtype(state))
        correction = weight.astype(_dtype(state))
        blocks = elementwise.precondition(reading, state, blocks, correction, level)
      else:
        state = computed(state)
        blocks = estimator_of(reading).precondition(reading, state, blocks)
      directions |= from_blocks(reading, blocks)
    return directions

  def _stored(self, state: Any) -> Any:
    """A layer of blocks with its inverse in the dtype that it is kept in."""
    if self.inverse_dtype is None or isinstance(state, low_rank.LowRankState):
      return state  # an error of what "low_rank" keeps is divided by the damping
    return state._replace(inverse=state.inverse.astype(self.inverse_dtype))

  def _level(self, count: jax.Array, dtype: jax.typing.DTypeLike) -> Damping:
    value = self.damping(count) if callable(self.damping) else self.damping
    value = placement.scalar(value, dtype)
    if not self.relative_damping:
      return lambda mean_diagonal: jnp.broadcast_to(value, mean_diagonal.shape)
    return lambda mean_diagonal: jnp.where(
      mean_diagonal > 0, value * mean_diagonal + _FLOOR, 1
    )


def _dtype(state: Any) -> jnp.dtype:
  return jax.tree.leaves(state)[0].dtype


def computed(state: Any) -> Any:
  """A layer of blocks with its inverse in the dtype of its statistics."""
  return state._replace(inverse=state.inverse.astype(_dtype(state)))
