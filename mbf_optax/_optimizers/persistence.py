"""How much of a gradient the momentum before it foretold, layer by layer.

With ``g`` the gradient of a layer and ``m^`` the bias-corrected momentum that did not
know it yet, the foretold share is ``r = <g, m^> / max(|g|^2, |m^|^2)``, in ``[-1, 1]``.
Its moving average, clipped to ``[0, 1]``, is the layer's persistence ``kappa``: near
one where the gradient persists (first steps, low rates, full batches), near zero where
it is noise or oscillates.
"""

import functools

import jax.numpy as jnp

from mbf_optax._estimators.estimator import norm
from mbf_optax._partition.blocks import Pieces
from mbf_optax._tree.shapes import Array, Float, Int

MEMORY = 0.9
"""Decay of the moving average: persistence is that of the last ten steps or so."""


def foretold(g: Pieces, m_hat: Pieces, stack_ndim: int) -> Float[Array, "*stack"]:
  """The foretold share ``r`` of block vectors, for every stacked layer.

  It is the cosine of the two times the ratio of their lengths, so that no square over-
  or underflows.
  """
  axes = (0, *range(1 + stack_ndim, g[0].ndim))
  m_hat = [m.astype(part.dtype) for m, part in zip(m_hat, g, strict=True)]
  lengths = norm(g, axes), norm(m_hat, axes)
  one, other = (jnp.where(length > 0, length, 1) for length in lengths)
  products = [
    jnp.sum(a / one * (b / other), axes) for a, b in zip(g, m_hat, strict=True)
  ]
  cosine = functools.reduce(jnp.add, products)
  ratio = jnp.minimum(*lengths) / jnp.maximum(one, other)
  share = cosine * ratio.reshape(cosine.shape)
  return jnp.where(jnp.isfinite(share), share, 0)


def persistence(
  average: Float[Array, "*stack"], t: Int[Array, ""]
) -> Float[Array, "*stack"]:
  """``kappa`` at step ``t``, from 1 on, of moving averages that started at zero.

  At the first step nothing could be foretold, and the gradient is taken to persist.
  """
  before = (t - 1).astype(average.dtype)
  corrected = average / jnp.where(t > 1, 1 - MEMORY**before, 1)
  return jnp.where(t > 1, jnp.clip(corrected, 0, 1), 1)
