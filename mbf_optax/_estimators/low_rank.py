"""The ``low_rank`` estimator: exact per-neuron blocks without an ``n x n`` matrix.

With ``U`` holding the last ``r`` gradients of a neuron, each times the square root of
its weight in the moving average, the block is ``U U^T`` and by Woodbury's identity

    ``(U U^T + lambda I)^(-1) m = (m - U (lambda I_r + U^T U)^(-1) U^T m) / lambda``.

Gradients of successive steps are alike, ``U^T U`` is nearly singular and the difference
above cancels, so the inverse is applied as ``L^(-T) (L^(-1) x)``.
"""

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

_HIGHEST = jax.lax.Precision.HIGHEST


class LowRankState(NamedTuple):
  """State of a layer that keeps its last ``r`` gradients.

  Attributes:
    history: ``(*batch, r, n)``, the gradients of every neuron, float32 or wider.
    weights: ``(r,)``, their weights in the moving average, not normalised.
    slot: ``()`` int32, where the next gradient goes.
    gram: packed ``(r (r + 1) / 2, *batch)``, inner products of the history.
    inverse: packed ``(r (r + 1) / 2, *batch)``, ``L^(-1)`` of ``lambda I + D K D = L
      L^T`` with ``K`` the Gram matrix and ``D`` the square roots of the normalised
      weights.
    damping: ``(*batch,)``, the ``lambda`` that belongs to ``inverse``.
  """

  history: jax.Array
  weights: jax.Array
  slot: jax.Array
  gram: jax.Array
  inverse: jax.Array
  damping: jax.Array


class LowRankBlocks:
  """The last ``layer.rank`` gradients of every neuron, and their Gram matrices."""

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> LowRankState:
    rank, batch = reading.layer.rank, reading.batch_shape
    triangle = packed.packed_size(rank), *batch
    return LowRankState(
      history=jnp.zeros((*batch, rank, reading.block_size), dtype),
      weights=jnp.zeros(rank, dtype),
      slot=jnp.zeros((), jnp.int32),
      gram=jnp.zeros(triangle, dtype),
      inverse=jnp.zeros(triangle, dtype),
      damping=jnp.ones(batch, dtype),
    )

  def accumulate(
    self, reading: Reading, state: LowRankState, gradient: jax.Array, ema: jax.Array
  ) -> LowRankState:
    row = jnp.moveaxis(without_faults(gradient), 0, -1)
    history = jax.lax.dynamic_update_index_in_dim(
      state.history, row, state.slot, state.history.ndim - 2
    )
    products = jnp.matmul(history, row[..., None], precision=_HIGHEST)[..., 0]
    entries = jnp.asarray(packed.positions(reading.layer.rank))[state.slot]
    return state._replace(
      history=history,
      weights=(ema * state.weights).at[state.slot].set(1 - ema),
      slot=(state.slot + 1) % reading.layer.rank,
      gram=state.gram.at[entries].set(jnp.moveaxis(products, -1, 0)),
    )

  def system(
    self, reading: Reading, state: LowRankState, weight: jax.Array, damping: Damping
  ) -> Matrices:
    del weight  # normalised weights need no correction
    products = packed.outer(jnp.sqrt(normalized(state).weights))
    weighted = products.reshape(-1, *[1] * state.damping.ndim) * state.gram
    trace = jnp.sum(packed.diagonal(weighted), axis=0)
    level = beside(damping(over_layer(trace / reading.block_size, reading)), trace)
    level = jnp.where(level > 0, level, state.damping)  # the last that was any
    # Gradients that hardly differ have a Gram matrix whose small eigenvalues are all
    # rounding: no damping below that can be told from none.
    precision = jnp.finfo(trace.dtype)
    least = 2 * reading.layer.rank * precision.eps * trace + precision.tiny
    level = jnp.maximum(level, least)
    damped = packed.add_to_diagonal(weighted, level)
    return Matrices(damped, True, level, as_factor=True)

  def with_inverse(
    self, state: LowRankState, system: Matrices, inverses: Inverses
  ) -> LowRankState:
    damping = jnp.where(inverses.accepted, system.damping, state.damping)
    return state._replace(inverse=inverses.values, damping=damping)

  def precondition(
    self, reading: Reading, state: LowRankState, vectors: jax.Array
  ) -> jax.Array:
    del reading
    columns = jnp.moveaxis(vectors, 0, -1)
    roots = jnp.sqrt(normalized(state).weights)
    roots = roots.reshape(*[1] * state.damping.ndim, -1)
    inner = jnp.matmul(state.history, columns[..., None], precision=_HIGHEST)[..., 0]
    inner = packed.lower_matvec(state.inverse, jnp.moveaxis(roots * inner, -1, 0))
    inner = packed.transposed_lower_matvec(state.inverse, inner)
    inner = roots * jnp.moveaxis(inner, 0, -1)
    along = jnp.matmul(inner[..., None, :], state.history, precision=_HIGHEST)[
      ..., 0, :
    ]
    return jnp.moveaxis((columns - along) / state.damping[..., None], -1, 0)

  def condition(self, state: LowRankState, weight: jax.Array) -> jax.Array:
    del weight
    shares = normalized(state).weights.reshape(-1, *[1] * state.damping.ndim)
    gram = shares * packed.diagonal(
      state.gram
    )  # of U^T U, whose trace is that of U U^T
    return condition_number(gram, 1 / state.damping[None])  # beside U's columns


def normalized(state: LowRankState) -> LowRankState:
  """The state with weights that sum to one, as after a complete average."""
  total = jnp.sum(state.weights)
  return state._replace(weights=state.weights / jnp.where(total > 0, total, 1))
