"""Inverses of wide matrices that a mesh of devices divides by rows.

The block sweep of :mod:`mbf_optax.inverse` with every device at its own rows: a panel
of columns is all that travels, so no device ever holds a whole matrix, and each does
its share of the work.
"""

import functools

import jax
import jax.numpy as jnp

from mbf_optax import placement
from mbf_optax.inverse import eliminate, panel_width

_HIGHEST = jax.lax.Precision.HIGHEST


def spd_inverse(matrices: jax.Array) -> jax.Array:
  """:func:`mbf_optax.inverse.spd_inverse` of matrices that stay divided by rows.

  Nothing is padded, since that would move rows between devices.

  Args:
    matrices: ``(..., n, n)``, float32 or float64, within ``jax.set_mesh``.

  Returns:
    The inverses, divided in the same way; NaN where a matrix is not numerically
    positive definite.
  """
  n = matrices.shape[-1]
  width = min(panel_width(n), n)
  border = n % width
  swept = _sweep_panel(border, 0, matrices) if border else matrices
  sweep = functools.partial(_sweep_panel, width)
  return -jax.lax.fori_loop(
    0, n // width, lambda step, swept: sweep(border + step * width, swept), swept
  )


def _sweep_panel(
  width: int, offset: jax.typing.ArrayLike, swept: jax.Array
) -> jax.Array:
  """Sweeps ``width`` columns.

  They are taken, and the new rows selected, because XLA gathers a divided matrix before
  it slices it.
  """
  n = swept.shape[-1]
  columns = jnp.take(swept, offset + jnp.arange(width), axis=-1, mode="clip")
  scaled, panel = map(placement.whole, eliminate(placement.whole(columns), offset))
  swept = swept - jnp.matmul(scaled, scaled.mT, precision=_HIGHEST)
  start = (0,) * (swept.ndim - 1)
  swept = jax.lax.dynamic_update_slice(swept, panel, (*start, offset))
  within = jnp.arange(n) - offset
  rows = jnp.take(panel.mT, within, axis=-2, mode="clip")
  is_row = ((within >= 0) & (within < width))[:, None]
  return jnp.where(jnp.broadcast_to(is_row, swept.shape), rows, swept)
