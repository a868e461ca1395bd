"""Decompositions by LAPACK, one matrix at a time.

Some jaxlib releases never return from several *batched* LAPACK calls in one program on
a CPU. So each call is made on a lone matrix, and where a whole training is mapped over
a grid, on one matrix after another.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve


@jax.custom_batching.sequential_vmap
def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues and eigenvectors (in columns) of a symmetric matrix, largest first."""
  values, vectors = jnp.linalg.eigh(matrix)
  return values[::-1], vectors[:, ::-1]


@jax.custom_batching.sequential_vmap
def orthogonal(matrix: jax.Array) -> jax.Array:
  """The orthogonal factor of a matrix's QR decomposition."""
  return jnp.linalg.qr(matrix)[0]


@jax.custom_batching.sequential_vmap
def inverse(matrix: jax.Array) -> jax.Array:
  """Inverse of a symmetric positive definite matrix; not finite where there is none."""
  factor = cho_factor(matrix, lower=True)
  return cho_solve(factor, jnp.eye(len(matrix), dtype=matrix.dtype))
