"""Inverse roots of positive definite matrices by the coupled Newton iteration.

Matrix products only, so no LAPACK call is made, and any batch shape goes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.baselines.common import HIGHEST

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-6
_ASYMPTOTIC = 0.5  # above, an ill-conditioned residual does not visibly shrink yet


class _Iterate(NamedTuple):
  """State of the iteration: ``residual`` is ``root^p A`` and tends to the identity."""

  step: jax.Array
  root: jax.Array
  residual: jax.Array
  error: jax.Array
  improving: jax.Array


def inverse_root(matrices: jax.Array, p: int) -> jax.Array:
  r"""``A^(-1/p)`` by the coupled (Schur-)Newton iteration.

  With :math:`M_0 = z A`, :math:`X_0 = z^{1/p} I` and :math:`z = (1 + p) / (2 \|A\|_F)`,

  .. math::
    T = ((p + 1) I - M) / p, \qquad X \leftarrow X T, \qquad M \leftarrow T^p M

  until the largest element of :math:`M - I` is at rounding level or has stopped to
  shrink; the best iterate is returned.

  Args:
    matrices: ``(..., n, n)``, symmetric positive definite.
    p: order of the root, 1 or more.

  Returns:
    The inverse roots in the same shape and dtype; not finite where a matrix is not.

  References:
    Guo and Higham, `A Schur-Newton Method for the Matrix pth Root and its Inverse
    <https://doi.org/10.1137/050643374>`_, 2006; Anil et al., `Scalable Second Order
    Optimization for Deep Learning <https://arxiv.org/abs/2002.09018>`_, 2021.
  """
  dtype = matrices.dtype
  eye = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=dtype), matrices.shape)
  norm = jnp.sqrt(jnp.sum(matrices**2, (-2, -1), keepdims=True))
  scale = (1 + p) / (2 * norm)

  def unfinished(iterate: _Iterate) -> jax.Array:
    active = iterate.improving & (iterate.error > _TOLERANCE)
    return active.any() & (iterate.step < _MAX_ITERATIONS)

  def advance(iterate: _Iterate) -> _Iterate:
    factor = ((p + 1) * eye - iterate.residual) / p
    residual = jnp.matmul(_power(factor, p), iterate.residual, precision=HIGHEST)
    residual = (residual + residual.mT) / 2
    error = _distance(residual, eye)
    shrinking = (error < iterate.error) | (iterate.error > _ASYMPTOTIC)
    improving = iterate.improving & shrinking
    chosen = improving[..., None, None]
    root = jnp.matmul(iterate.root, factor, precision=HIGHEST)
    return _Iterate(
      step=iterate.step + 1,
      root=jnp.where(chosen, root, iterate.root),
      residual=jnp.where(chosen, residual, iterate.residual),
      error=jnp.where(improving, error, iterate.error),
      improving=improving,
    )

  residual = matrices * scale
  start = _Iterate(
    step=jnp.zeros((), jnp.int32),
    root=eye * scale ** (1 / p),
    residual=residual,
    error=jnp.full_like(norm[..., 0, 0], jnp.inf),
    improving=jnp.ones(matrices.shape[:-2], bool),
  )
  root = jax.lax.while_loop(unfinished, advance, start).root
  return (root + root.mT) / 2


def _power(matrix: jax.Array, p: int) -> jax.Array:
  """``matrix^p`` by repeated squaring."""
  if p == 1:
    return matrix
  half = _power(matrix, p // 2)
  square = jnp.matmul(half, half, precision=HIGHEST)
  return jnp.matmul(square, matrix, precision=HIGHEST) if p % 2 else square


def _distance(residual: jax.Array, eye: jax.Array) -> jax.Array:
  return jnp.max(jnp.abs(residual - eye), (-2, -1))
