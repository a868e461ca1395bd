"""What an estimator of mini-blocks is, and which one serves a layer.

An estimator works on block vectors ``(n, *batch)`` of one layer and keeps its state.
Preparing matrices and taking back their inverses are two calls, so that equal sizes
from all layers are inverted in one batch between them (:mod:`mbf_optax.refresh`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mbf_optax.layers import Reading

Damping = Callable[[jax.Array], jax.Array]
"""From the mean diagonal of a layer's statistics, ``(*stack,)``, to its damping."""


class Matrices(NamedTuple):
  """A layer's damped matrices, on their way to the batched inverse.

  Attributes:
    values: ``(n (n + 1) / 2, *batch)`` if packed, else ``(*batch, n, n)``.
    is_packed: which of the two.
    damping: the ``lambda`` that was added, ``(*stack,)`` or ``(*batch,)``.
    as_factor: whether ``L^(-1)`` of the packed ``A = L L^T`` is wanted for ``A^(-1)``.
  """

  values: jax.Array
  is_packed: bool
  damping: jax.Array
  as_factor: bool = False


class Inverses(NamedTuple):
  """A layer's inverses, as they come back.

  Attributes:
    values: in the shape of the matrices; where a new inverse is not finite, the
      previous one.
    accepted: whether each matrix has a new one, in the shape of their batch.
  """

  values: jax.Array
  accepted: jax.Array


class Estimator(Protocol):
  """Curvature of one layer: statistics, and the inverse that follows from them.

  A state has the field ``inverse``, in the shape of the system's matrices.
  """

  def init(self, reading: Reading, dtype: jax.typing.DTypeLike) -> Any:
    """State before the first gradient; its inverse is the identity."""

  def accumulate(
    self, reading: Reading, state: Any, gradient: jax.Array, ema: jax.Array
  ) -> Any:
    """State with one more gradient ``(n, *batch)`` in its moving average."""

  def system(
    self, reading: Reading, state: Any, weight: jax.Array, damping: Damping
  ) -> Matrices:
    """The matrices to invert; ``weight`` is the bias correction ``c``."""

  def with_inverse(self, state: Any, system: Matrices, inverses: Inverses) -> Any:
    """State with the inverses of the system."""

  def precondition(self, reading: Reading, state: Any, vectors: jax.Array) -> jax.Array:
    """``P v`` for block vectors ``(n, *batch)``."""

  def condition(self, state: Any, weight: jax.Array) -> jax.Array:
    """Estimated condition number of every damped matrix; ``weight`` as above."""


def without_faults(gradient: jax.Array) -> jax.Array:
  """Block vectors ``(n, *batch)`` with zeros for blocks that cannot be squared.

  A block with an element that is not finite, or so large that its square, or a sum of
  such squares, overflows, would stay in a moving average for good. The sum itself is
  not taken: over the leading axis it costs a CPU more than the statistics do.
  """
  squares = len(gradient) * jnp.square(gradient)
  usable = jnp.all(jnp.isfinite(squares), axis=0, keepdims=True)
  return jnp.where(usable, gradient, 0)


def condition_number(statistics: jax.Array, inverse: jax.Array) -> jax.Array:
  r"""Condition numbers of ``A = G + lambda I``, from diagonals.

  The condition number is :math:`\lambda_{max}(A) \lambda_{max}(P)` with ``P`` the
  inverse. :math:`1 + \lambda_{max}(G) \lambda_{max}(P)` is at most one above it, and
  needs no ``lambda``. The trace of ``G`` is up to ``n`` times too large for
  :math:`\lambda_{max}(G)`, the largest diagonal element of ``P`` up to ``n`` times too
  small for :math:`\lambda_{max}(P)`.

  Args:
    statistics: diagonals of ``G``, ``(n, *batch)``.
    inverse: diagonals of ``P``, ``(n, *batch)``.
  """
  return 1 + jnp.sum(statistics, axis=0) * jnp.max(inverse, axis=0)


def over_layer(values: jax.Array, reading: Reading) -> jax.Array:
  """Mean over everything but the stacked axes, which lead: ``(*stack,)``."""
  return jnp.mean(values, axis=range(reading.layer.stack_axes, values.ndim))


def beside(level: jax.Array, values: jax.Array) -> jax.Array:
  """``level``, ``(*stack,)``, with axes of size one to broadcast against ``values``."""
  return level.reshape(*level.shape, *[1] * (values.ndim - level.ndim))
