"""Inverses by Cholesky factors, for platforms whose library calls are the fastest."""

import jax
import jax.numpy as jnp

from mbf_optax._tree.shapes import Array, Float


def by_cholesky(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  """Inverses of symmetric positive definite matrices; NaN where there is none."""
  # The library wants columns contiguous, not rows. A symmetric matrix is that without a
  # copy once it is transposed.
  factor = jax.lax.linalg.cholesky(matrices.mT, symmetrize_input=False)
  eye = jnp.broadcast_to(
    jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape
  )
  inverse_factor = jax.lax.linalg.triangular_solve(
    factor, eye, left_side=True, lower=True
  )
  inverse = jnp.matmul(
    inverse_factor.mT, inverse_factor, precision=jax.lax.Precision.HIGHEST
  )
  # The inverse of an infinite factor would be a zero that looks like any other.
  usable = jnp.all(jnp.isfinite(factor), axis=(-2, -1), keepdims=True)
  inverse = jnp.where(usable, inverse, jnp.nan)
  # Flattened it has rows contiguous, or the optimizer's state would take over the
  # library's layout, and be copied for it at every step.
  flat = inverse.reshape(*inverse.shape[:-2], -1)
  return jax.lax.optimization_barrier(flat).reshape(inverse.shape)
