"""What Adam divides by the root of its second moment."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbf_optax._mesh import devices
from mbf_optax._tree.dtypes import as_float
from mbf_optax._tree.shapes import Array, Float, Inexact, Int


def plain(adam: optax.ScaleByAdamState, g: Any, b1: jax.typing.ArrayLike) -> Any:
  """The corrected momentum ``m^``."""
  del g
  return corrected(adam.mu, b1, adam.count)


def nesterov(adam: optax.ScaleByAdamState, g: Any, b1: jax.typing.ArrayLike) -> Any:
  """Nesterov's form of it, as ``optax.scale_by_adam`` has it (Dozat, 2016)."""
  ahead = corrected(adam.mu, b1, adam.count + 1)
  g_hat = corrected(g, b1, adam.count)

  def mixed(
    m: Inexact[Array, "*shape"], g: Inexact[Array, "*shape"]
  ) -> Inexact[Array, "*shape"]:
    beta = _decay(b1, m).astype(m.dtype)
    return beta * m + (1 - beta) * g

  return jax.tree.map(mixed, ahead, g_hat)


def corrected(moment: Any, decay: jax.typing.ArrayLike, count: Int[Array, ""]) -> Any:
  """Moments, widened, divided by ``1 - decay ** count``."""

  def correct(m: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    m, beta = as_float(m), _decay(decay, m)
    correction = 1 - beta ** count.astype(beta.dtype)
    return m / correction.astype(m.dtype)

  return jax.tree.map(correct, moment)


def _decay(
  value: jax.typing.ArrayLike, like: Inexact[Array, "..."]
) -> Float[Array, ""]:
  """A decay in the real dtype that belongs to a moment."""
  return devices.replicated(value, jnp.finfo(as_float(like).dtype).dtype)
