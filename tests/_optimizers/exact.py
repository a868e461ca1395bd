"""Powers of matrices by eigendecomposition, in the place of the library's own.

For ``jax.disable_jit`` alone: NumPy takes known arrays. Callbacks out of compiled code
would do without, but wait for each other where a machine has two cores.
"""

import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import triangles
from mbf_optax._linalg.batches import Results


def inverse_powers(systems, exponents, previous, method="sweep"):
  """Like ``batches.inverse_powers``, in float64."""
  del previous, method
  return [_powers(*pair) for pair in zip(systems, exponents, strict=True)]


def _powers(system, exponent):
  scale, shift, p = (
    np.broadcast_to(np.asarray(value, np.float64), system.batch)[..., None, None]
    for value in (system.scale, system.shift, exponent)
  )
  statistics = np.asarray(system.statistics, np.float64)
  if system.is_packed:
    table = triangles.positions(triangles.unpacked_size(len(statistics)))
    statistics = np.moveaxis(statistics[table], (0, 1), (-2, -1))
  damped = scale * statistics + shift * np.eye(statistics.shape[-1])
  eigenvalues, vectors = np.linalg.eigh(damped)
  powers = eigenvalues ** -p[..., 0]
  new = (vectors * powers[..., None, :]) @ vectors.swapaxes(-1, -2)
  if system.is_packed:
    rows, columns = np.triu_indices(new.shape[-1])
    new = np.moveaxis(new[..., rows, columns], -1, 0)
  new = jnp.asarray(new, system.statistics.dtype)
  return Results(new, jnp.ones(system.batch, bool), system.shift)
