"""What Adam divides by the root of its second moment, up to a factor."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbf_optax._mesh import devices
from mbf_optax._tree.dtypes import as_float
from mbf_optax._tree.shapes import Array, Float, Inexact, Int


def plain(adam: optax.ScaleByAdamState, g: Any, b1: jax.typing.ArrayLike) -> Any:
  """The momentum, widened. Its correction is a factor, and lengths are Adam's."""
  del g, b1
  return jax.tree.map(as_float, adam.mu)


def nesterov(adam: optax.ScaleByAdamState, g: Any, b1: jax.typing.ArrayLike) -> Any:
  """Nesterov's form of it, as ``optax.scale_by_adam`` has it (Dozat, 2016)."""
  ahead = corrected(adam.mu, b1, adam.count + 1)
  g_hat = corrected(g, b1, adam.count)

  def mixed(
    m: Inexact[Array, "*shape"], g: Inexact[Array, "*shape"]
  ) -> Inexact[Array, "*shape"]:
    beta = devices.replicated(b1, jnp.finfo(m.dtype).dtype).astype(m.dtype)
    return beta * m + (1 - beta) * g

  return jax.tree.map(mixed, ahead, g_hat)


def corrected(moment: Any, decay: jax.typing.ArrayLike, count: Int[Array, ""]) -> Any:
  """Moments, widened, divided by ``1 - decay ** count``."""
  of_dtype = functools.cache(functools.partial(correction, decay, count))

  def correct(m: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    m = as_float(m)
    return m / of_dtype(m.dtype).astype(m.dtype)

  return jax.tree.map(correct, moment)


def correction(
  decay: jax.typing.ArrayLike, count: Int[Array, ""], dtype: jax.typing.DTypeLike
) -> Float[Array, ""]:
  """``1 - decay ** count`` in the real dtype that belongs to a moment's."""
  beta = devices.replicated(decay, jnp.finfo(dtype).dtype)
  return 1 - beta ** count.astype(beta.dtype)
