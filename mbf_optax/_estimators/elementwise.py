"""Blocks of one element: norms, embeddings, convolution biases, whatever is unnamed.

Their statistics cost what Adam's do, so they are updated at every step and the
inverse is always fresh. ``"rms"`` is Adam's direction (section 11.1.5 of the paper,
for normalisation layers), ``"inverse"`` the same without the square root (Algorithm 2,
for the biases of convolutions).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbf_optax.estimators import Damping, beside, over_layer
from mbf_optax.layers import Reading

_EPSILON = 1e-8


class ElementwiseState(NamedTuple):
  """State of a layer that is read element by element.

  Attributes:
    second_moment: moving average of ``|g|^2``, real, as blocks ``(1, *shape)``.
  """

  second_moment: jax.Array


def init(reading: Reading, dtype: jax.typing.DTypeLike) -> ElementwiseState:
  """State before the first gradient of a parameter of the given dtype."""
  return ElementwiseState(jnp.zeros((1, *reading.shape), jnp.finfo(dtype).dtype))


def accumulate(
  state: ElementwiseState, gradient: jax.Array, ema: jax.Array
) -> ElementwiseState:
  """State with one more gradient in its moving average."""
  square = jnp.square(jnp.abs(gradient)).astype(state.second_moment.dtype)
  square = jnp.where(jnp.isfinite(square), square, 0)
  return ElementwiseState(ema * state.second_moment + (1 - ema) * square)


def precondition(
  reading: Reading,
  state: ElementwiseState,
  momentum: jax.Array,
  weight: jax.Array,
  damping: Damping,
) -> jax.Array:
  """Directions ``(1, *shape)``; ``weight`` is the bias correction ``c``."""
  corrected = state.second_moment / weight
  if reading.layer.estimator == "rms":
    divisor = jnp.where(corrected > 0, jnp.sqrt(corrected) + _EPSILON, 0)
  else:
    level = damping(over_layer(corrected[0], reading))
    divisor = corrected + beside(level, corrected[0])[None]
  divisor = jnp.where(divisor > 0, divisor, jnp.inf)  # no usable gradient yet
  return momentum / divisor.astype(momentum.dtype)
