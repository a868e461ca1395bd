"""The layers of a parameter tree, each with its estimator.

What an optimizer does to its layers' states is one call here, whatever kinds of blocks
they have.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mbf_optax._estimators.estimator import Estimator
from mbf_optax._estimators.table import estimator_of
from mbf_optax._linalg.groups import Results, System
from mbf_optax._linalg.statistics import Regularizer
from mbf_optax._mesh import devices
from mbf_optax._optimizers.alike import of_each
from mbf_optax._partition.blocks import Pieces, from_pieces, to_pieces
from mbf_optax._partition.layer import Reading
from mbf_optax._tree.dtypes import wide_dtype
from mbf_optax._tree.paths import Leaves
from mbf_optax._tree.shapes import Array, Bool, Float, Inexact, Int

States = dict[str, Any]
"""State of every layer by the path of its weight array."""


@dataclasses.dataclass(frozen=True)
class Layers:
  """Layers that are treated alike.

  Attributes:
    estimators: one a layer.
    inverse_dtype: in which inverses are kept; ``None`` is that of the statistics.
  """

  estimators: tuple[Estimator, ...]
  inverse_dtype: jax.typing.DTypeLike | None = None

  @classmethod
  def of(
    cls,
    readings: Sequence[Reading],
    inverse_dtype: jax.typing.DTypeLike | None = None,
  ) -> "Layers":
    """The layers of readings whose estimators are all named."""
    return cls(tuple(map(estimator_of, readings)), inverse_dtype)

  def where(self, keep: Callable[[Estimator], bool]) -> "Layers":
    """Those of the layers whose estimator is to be kept."""
    return dataclasses.replace(self, estimators=tuple(filter(keep, self.estimators)))

  @property
  def elementwise(self) -> "Layers":
    """Layers whose blocks have one element."""
    return self.where(lambda estimator: not estimator.sides)

  @property
  def blocks(self) -> "Layers":
    """Layers with matrices."""
    return self.where(lambda estimator: bool(estimator.sides))

  def of_these(self, states: States) -> States:
    """The part of the states that belongs to these layers."""
    return {path: states[path] for path in self.paths}

  @property
  def paths(self) -> list[str]:
    """The layers' names."""
    return [estimator.reading.path for estimator in self.estimators]

  def in_order(self, states: States) -> list[Any]:
    """The layers' states; a dictionary that was traced has an order of its own."""
    return [states[path] for path in self.paths]

  def pieces(self, leaves: Leaves) -> list[Sequence[Inexact[Array, "..."]]]:
    """The layers' block vectors, of arrays at the given paths."""
    return [to_pieces(estimator.reading, leaves) for estimator in self.estimators]

  def leaves(self, pieces: Sequence[Sequence[Inexact[Array, "..."]]]) -> Leaves:
    """Inverse of :meth:`pieces`."""
    found: Leaves = {}
    for estimator, of_layer in zip(self.estimators, pieces, strict=True):
      found |= from_pieces(estimator.reading, of_layer)
    return found

  def each(self, function: Callable[..., Any], *arguments: Sequence) -> list[Any]:
    """:func:`~mbf_optax._optimizers.alike.of_each` of these layers."""
    return of_each(function, self.estimators, *arguments)

  def init(self, leaves: Leaves) -> States:
    """States before the first gradient of the parameters at the given paths."""
    states = {}
    for estimator in self.estimators:
      dtype = wide_dtype(leaves[estimator.reading.path].dtype)
      state = estimator.init(dtype)
      states[estimator.reading.path] = self._stored(estimator, state)
    return states

  def accumulate(
    self, states: States, gradients: Leaves, ema: jax.typing.ArrayLike
  ) -> States:
    """States with one more gradient, :func:`without_faults`, in their statistics."""
    pieces = self.pieces(gradients)
    for place, estimator in enumerate(self.estimators):
      if estimator.sides:
        dtype = statistics_dtype(states[estimator.reading.path])
        pieces[place] = [piece.astype(dtype) for piece in pieces[place]]
    entries = self.each(lambda estimator, gradient: estimator.entry(gradient), pieces)
    new = {}
    for estimator, entry in zip(self.estimators, entries, strict=True):
      state = states[estimator.reading.path]
      decay = devices.replicated(ema, statistics_dtype(state))
      new[estimator.reading.path] = estimator.accumulate(state, entry, decay)
    return new

  def refresh(
    self,
    states: States,
    systems_of: Callable[[Estimator, Any], list[System]],
    compute: Callable[[list[System], list[Float[Array, "..."]]], list[Results]],
  ) -> States:
    """States with new inverses or powers, all layers at once.

    Args:
      states: by layer.
      systems_of: from a layer's estimator and state to its matrices.
      compute: from matrices, and what was last made of them, to what is made of them
        now.
    """
    systems, previous = [], []
    for estimator in self.estimators:
      state = states[estimator.reading.path]
      systems += systems_of(estimator, state)
      old = estimator.inverses(state)
      previous += [inverse.astype(statistics_dtype(state)) for inverse in old]
    results = compute(systems, previous) if systems else []
    new = {}
    for estimator in self.estimators:
      of_layer = [results.pop(0) for _ in estimator.sides]
      state = estimator.with_inverses(states[estimator.reading.path], of_layer)
      new[estimator.reading.path] = self._stored(estimator, state)
    return new

  def completed(self, states: States) -> States:
    """States as after a complete moving average, whose weights sum to one."""
    return {
      e.reading.path: e.completed(states[e.reading.path]) for e in self.estimators
    }

  def precondition(
    self, states: States, vectors: Leaves, regularize: Regularizer
  ) -> Leaves:
    """Directions ``P m`` by path of the parameters."""

    def direction(estimator: Estimator, state: Any, pieces: Pieces) -> Pieces:
      return estimator.precondition(computed(estimator, state), pieces, regularize)

    own = self.in_order(states)
    return self.leaves(self.each(direction, own, self.pieces(vectors)))

  def shardings(
    self, states: States, layout_of: Callable[[str], NamedSharding]
  ) -> States:
    """Where every layer's state lies, given the layouts of parameters by path."""
    return {
      e.reading.path: e.shardings(states[e.reading.path], layout_of(e.reading.path))
      for e in self.estimators
    }

  def _stored(self, estimator: Estimator, state: Any) -> Any:
    """A layer's state with its inverses in the dtype that they are kept in."""
    if self.inverse_dtype is None or not estimator.rounds_inverse:
      return state
    return _cast_inverses(estimator, state, self.inverse_dtype)


def computed(estimator: Estimator, state: Any) -> Any:
  """A layer's state with its inverses in the dtype of its statistics."""
  if not estimator.rounds_inverse:
    return state
  return _cast_inverses(estimator, state, statistics_dtype(state))


def statistics_dtype(state: Any) -> jnp.dtype:
  """The dtype of a layer's statistics, whose arrays lead its state."""
  return jax.tree.leaves(state)[0].dtype


def _cast_inverses(
  estimator: Estimator, state: Any, dtype: jax.typing.DTypeLike
) -> Any:
  results = [
    Results(inverse.astype(dtype), jnp.array(True))
    for inverse in estimator.inverses(state)
  ]
  return estimator.with_inverses(state, results)


def every(
  period: jax.typing.ArrayLike,
  count: Int[Array, ""],
  function: Callable[[Any], Any],
  value: Any,
) -> Any:
  """``function(value)`` at every ``period``-th count from 0 on, else ``value``."""
  if is_always(period):
    return when(True, function, value)
  period = devices.replicated(period, count.dtype)
  return when(count % period == 0, function, value)


def is_always(period: jax.typing.ArrayLike) -> bool:
  """Whether a period is known to be 1 before anything is traced."""
  return isinstance(period, int) and period == 1


def when(
  is_due: Bool[Array, ""] | Literal[True], function: Callable[[Any], Any], value: Any
) -> Any:
  """``function(value)`` where it is due, else ``value``."""
  if is_due is True:
    return function(value)  # a branch would be compiled and hold copies
  return jax.lax.cond(is_due, function, lambda unchanged: unchanged, value)


def corrected_by(
  ema: jax.typing.ArrayLike, weight: Float[Array, ""]
) -> Float[Array, ""]:
  """Bias correction ``1 - beta^s`` of a moving average after one more entry."""
  ema = devices.replicated(ema, weight.dtype)
  return ema * weight + (1 - ema)
