"""Powers of matrices by eigendecomposition, in the place of the library's own."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg.batches import Results


def inverse_powers(systems, exponents, previous, method="sweep"):
  """Like ``batches.inverse_powers``; NumPy works in float64, outside of XLA."""
  del previous, method
  return [_powers(*pair) for pair in zip(systems, exponents, strict=True)]


def _powers(system, exponent):
  values, batch = system.values, system.values.shape[:-2]
  if system.is_packed:
    batch = values.shape[1:]
  compute = functools.partial(_packed_power if system.is_packed else _power)
  exponents = jnp.broadcast_to(exponent, batch)
  shape = jax.ShapeDtypeStruct(values.shape, values.dtype)
  new = jax.pure_callback(compute, shape, values, exponents)
  return Results(new, jnp.ones(batch, bool), system.least)


def _power(values, exponents):
  eigenvalues, vectors = np.linalg.eigh(np.asarray(values, np.float64))
  powers = eigenvalues ** -np.asarray(exponents, np.float64)[..., None]
  product = (vectors * powers[..., None, :]) @ vectors.swapaxes(-1, -2)
  return product.astype(values.dtype)


def _packed_power(values, exponents):
  n = (math.isqrt(8 * len(values) + 1) - 1) // 2
  rows, columns = np.triu_indices(n)
  matrices = np.zeros((*values.shape[1:], n, n))
  matrices[..., rows, columns] = matrices[..., columns, rows] = np.moveaxis(
    np.asarray(values), 0, -1
  )
  powers = _power(matrices, exponents)[..., rows, columns]
  return np.moveaxis(powers, -1, 0).astype(values.dtype)
