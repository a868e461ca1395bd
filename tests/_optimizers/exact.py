"""Powers of matrices by eigendecomposition, in the place of the library's own."""

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
  statistics = system.statistics
  others = (
    jnp.broadcast_to(value, system.batch)
    for value in (system.scale, system.shift, exponent)
  )
  compute = _packed_power if system.is_packed else _power
  shape = jax.ShapeDtypeStruct(statistics.shape, statistics.dtype)
  new = jax.pure_callback(compute, shape, statistics, *others)
  return Results(new, jnp.ones(system.batch, bool), system.shift)


def _power(statistics, scale, shift, exponents):
  scale, shift = (np.asarray(v, np.float64)[..., None, None] for v in (scale, shift))
  values = np.asarray(statistics)
  damped = scale * values.astype(np.float64) + shift * np.eye(values.shape[-1])
  eigenvalues, vectors = np.linalg.eigh(damped)
  powers = eigenvalues ** -np.asarray(exponents, np.float64)[..., None]
  product = (vectors * powers[..., None, :]) @ vectors.swapaxes(-1, -2)
  return product.astype(values.dtype)


def _packed_power(statistics, *others):
  values = np.asarray(statistics)
  n = (math.isqrt(8 * len(values) + 1) - 1) // 2
  rows, columns = np.triu_indices(n)
  matrices = np.zeros((*values.shape[1:], n, n), values.dtype)
  matrices[..., rows, columns] = matrices[..., columns, rows] = np.moveaxis(
    values, 0, -1
  )
  powers = _power(matrices, *others)[..., rows, columns]
  return np.moveaxis(powers, -1, 0)
