"""Elements of gradients that would spoil a state for good."""

from typing import Any

import jax
import jax.numpy as jnp

from mbf_optax._tree.dtypes import as_float
from mbf_optax._tree.shapes import Array, Inexact

_SUMMANDS = 2.0**20
"""Squares of as many elements can be added up without overflow."""


def without_faults(gradients: Any) -> Any:
  """A tree in float32 or wider, with zeros for what cannot be squared and added up.

  A moving average of squares or products would never forget such an element.
  """
  return jax.tree.map(_usable, gradients)


def _usable(g: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
  wide = as_float(g)
  return jnp.where(jnp.isfinite(_SUMMANDS * jnp.square(jnp.abs(wide))), wide, 0)
