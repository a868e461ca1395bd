"""Powers of matrices by the binary digits of the exponent, to rounding.

``A^(-p)`` is the product of ``A^(-1/2), A^(-1/4), ...``, as far as ``p`` has those
digits, and every root is that of the one before (Denman and Beavers, 1976). Nothing is
approximated, and it runs in compiled code, as no call of LAPACK may here.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import triangles
from mbf_optax._linalg.sweep import spd_inverse

DIGITS, ITERATIONS = 44, 9
_matmul = jax.numpy.matmul


def powers(groups, exponents, method):
  """Like ``_powers`` of ``mbf_optax._linalg.batches``."""
  del method
  return [
    [_power(group, part, p) for part, p in zip(group.parts, of_group, strict=True)]
    for group, of_group in zip(groups, exponents, strict=True)
  ]


def _power(group, part, p):
  matrices = part.matrices(group)
  if not group.is_packed:
    return _inverse_power(matrices, p)
  whole = jnp.moveaxis(triangles.unpack(matrices), (0, 1), (-2, -1))
  power = jnp.moveaxis(_inverse_power(whole, p), (-2, -1), (0, 1))
  return power[np.triu_indices(len(power))]


def _inverse_power(a, p):
  eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)

  def digit(_, carry):
    power, factor, rest = carry
    root = _square_root(factor)
    rest = 2 * rest
    is_set = rest >= 1
    power = jnp.where(is_set[..., None, None], _matmul(power, root), power)
    return power, root, jnp.where(is_set, rest - 1, rest)

  p = p.astype(a.dtype)
  power, _, _ = jax.lax.fori_loop(0, DIGITS, digit, (eye, spd_inverse(a), p))
  return jnp.where((p == 1)[..., None, None], spd_inverse(a), power)


def _square_root(a):
  eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)

  def improve(_, pair):
    root, inverse = pair
    return (root + spd_inverse(inverse)) / 2, (inverse + spd_inverse(root)) / 2

  return jax.lax.fori_loop(0, ITERATIONS, improve, (a, eye))[0]
