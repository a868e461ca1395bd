"""The ``low_rank`` estimator: exact per-neuron blocks without an ``n x n`` matrix.

With ``U`` holding the last ``r`` gradients of a neuron, each times the square root of
its weight in the moving average, the block is ``U U^T`` and by Woodbury's identity

    ``(U U^T + lambda I)^(-1) m = (m - U (lambda I_r + U^T U)^(-1) U^T m) / lambda``.

Gradients of successive steps are alike, ``U^T U`` is nearly singular and the difference
above cancels, so the inverse is applied as ``L^(-T) (L^(-1) x)``.
"""

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
)
from mbf_optax._linalg import triangles
from mbf_optax._linalg.groups import Matrices, Results
from mbf_optax._linalg.products import multiply
from mbf_optax._linalg.statistics import Regularizer, Spectrum
from mbf_optax._partition.blocks import Pieces, cut, joined
from mbf_optax._tree.shapes import Array, Float, Int


class LowRankState(NamedTuple):
  """State of a layer that keeps its last ``r`` gradients.

  Attributes:
    history: ``(*batch, r, n)``, the gradients of every neuron, float32 or wider.
    weights: ``(r,)``, their weights in the moving average, not normalised.
    slot: ``()`` int32, where the next gradient goes.
    gram: packed triangles ``(r (r + 1) / 2, *batch)``, inner products of the history.
    inverse: packed likewise, ``L^(-1)`` of ``lambda I + D K D = L L^T`` with ``K`` the
      Gram matrix and ``D`` the square roots of the normalised weights.
    damping: ``(*batch,)``, the ``lambda`` that belongs to ``inverse``.
  """

  history: Float[Array, "*batch r n"]
  weights: Float[Array, "r"]
  slot: Int[Array, ""]
  gram: Float[Array, "r*(r+1)//2 *batch"]
  inverse: Float[Array, "r*(r+1)//2 *batch"]
  damping: Float[Array, "*batch"]


class LowRankBlocks(Blocks):
  """The last ``layer.rank`` gradients of every neuron, and their Gram matrices."""

  @property
  def refreshes_with_statistics(self) -> bool:
    return True

  @property
  def rounds_inverse(self) -> bool:
    return False  # rounding here would be amplified by 1 / damping

  def init(self, dtype: jax.typing.DTypeLike) -> LowRankState:
    rank, batch = self.reading.layer.rank, self.reading.batch_shape
    triangle = triangles.packed_size(rank), *batch
    return LowRankState(
      history=jnp.zeros((*batch, rank, self.reading.block_size), dtype),
      weights=jnp.zeros(rank, dtype),
      slot=jnp.zeros((), jnp.int32),
      gram=jnp.zeros(triangle, dtype),
      inverse=jnp.zeros(triangle, dtype),
      damping=jnp.ones(batch, dtype),
    )

  def entry(self, gradient: Pieces) -> Float[Array, "*batch n"]:
    return jnp.moveaxis(joined(gradient), 0, -1)

  def accumulate(
    self, state: LowRankState, entry: Float[Array, "*batch n"], ema: Float[Array, ""]
  ) -> LowRankState:
    rank = self.reading.layer.rank
    history = jax.lax.dynamic_update_index_in_dim(
      state.history, entry, state.slot, state.history.ndim - 2
    )
    products = multiply(history, entry[..., None])[..., 0]
    entries = jnp.asarray(triangles.positions(rank))[state.slot]
    return state._replace(
      history=history,
      weights=(ema * state.weights).at[state.slot].set(1 - ema),
      slot=(state.slot + 1) % rank,
      gram=state.gram.at[entries].set(jnp.moveaxis(products, -1, 0)),
    )

  def completed(self, state: LowRankState) -> LowRankState:
    return normalized(state)

  def matrices(self, state: LowRankState, regularize: Regularizer) -> list[Matrices]:
    """Gram matrices; their weights are normalised, so that ``scale`` plays no role."""
    n, ndim = self.reading.block_size, state.damping.ndim
    outer = triangles.outer(jnp.sqrt(normalized(state).weights))
    weighted = outer.reshape(-1, *[1] * ndim) * state.gram
    trace = jnp.sum(triangles.diagonal(weighted), axis=0)
    stacked = tuple(range(len(self.reading.stack_shape)))
    order = np.full([1] * ndim, n)
    _, level = regularize(Spectrum(trace / n, order, 1, stacked, is_corrected=True))
    # Where the damping has fallen to zero the last positive one is kept.
    level = jnp.where(level > 0, level, state.damping)
    # Gradients that hardly differ have a Gram matrix whose small eigenvalues are all
    # rounding. A smaller damping would have no effect.
    precision = jnp.finfo(trace.dtype)
    least = 2 * self.reading.layer.rank * precision.eps * trace + precision.tiny
    level = jnp.maximum(level, least)
    return [
      Matrices(weighted, True, jnp.ones_like(level), level, order, as_factor=True)
    ]

  def with_inverses(self, state: LowRankState, results: list[Results]) -> LowRankState:
    damping = jnp.where(results[0].is_new, results[0].shift, state.damping)
    return state._replace(inverse=results[0].values, damping=damping)

  def precondition(
    self,
    state: LowRankState,
    vectors: Pieces,
    regularize: Regularizer,
  ) -> Pieces:
    del regularize
    columns = jnp.moveaxis(joined(vectors), 0, -1)
    roots = jnp.sqrt(normalized(state).weights)
    roots = roots.reshape(*[1] * state.damping.ndim, -1)
    inner = multiply(state.history, columns[..., None])[..., 0]
    inner = triangles.lower_matvec(state.inverse, jnp.moveaxis(roots * inner, -1, 0))
    inner = triangles.transposed_lower_matvec(state.inverse, inner)
    inner = roots * jnp.moveaxis(inner, 0, -1)
    along = multiply(inner[..., None, :], state.history)
    found = (columns - along[..., 0, :]) / state.damping[..., None]
    return cut(self.reading, jnp.moveaxis(found, -1, 0))

  def condition(
    self, state: LowRankState, correction: Float[Array, ""]
  ) -> Float[Array, "*batch"]:
    """From ``U^T U``, whose trace is that of ``U U^T``, and the bound 1 / damping."""
    del correction
    shares = normalized(state).weights.reshape(-1, *[1] * state.damping.ndim)
    gram = shares * triangles.diagonal(state.gram)
    return condition_number(gram, 1 / state.damping[None])

  def spread(self, state: LowRankState) -> Float[Array, "*batch"]:
    return self.condition(state, jnp.ones(()))

  def shardings(self, state: LowRankState, sharding: NamedSharding) -> Any:
    del state
    batch = axes.of_blocks(self.reading, sharding)
    leading = axes.placed(sharding.mesh, *batch)
    trailing = axes.placed(sharding.mesh, None, *batch)
    whole = axes.placed(sharding.mesh)
    return LowRankState(leading, whole, whole, trailing, trailing, leading)

  def operations(self) -> Operations:
    n, rank, blocks = (
      self.reading.block_size,
      self.reading.layer.rank,
      self.reading.blocks,
    )
    return Operations(4 * n * rank * blocks, (2 * n * rank + 2 * rank**3) * blocks, 0)


def normalized(state: LowRankState) -> LowRankState:
  """The state with weights that sum to one, as after a complete average."""
  total = jnp.sum(state.weights)
  return state._replace(weights=state.weights / jnp.where(total > 0, total, 1))
