"""How much of a gradient the momentum before it foretold, layer by layer.

With ``g`` the gradient of a layer and ``m^`` the bias-corrected momentum that did not
know it yet, the foretold share is ``r = <g, m^> / max(|g|^2, |m^|^2)``, in ``[-1, 1]``.
Its moving average, clipped to ``[0, 1]``, is the layer's persistence ``kappa``: near
one where the gradient persists (first steps, low rates, full batches), near zero where
it is noise or oscillates. Nothing could foretell the first gradient, which is taken to
persist until the second one comes.
"""

import jax.numpy as jnp

from mbf_optax._estimators.estimator import inner
from mbf_optax._partition.blocks import Pieces
from mbf_optax._tree.shapes import Array, Float, Int

MEMORY = 0.9
"""Decay of the moving average: persistence is that of the last ten steps or so."""


def foretold(
  g: Pieces, m: Pieces, correction: Float[Array, ""], stack_ndim: int
) -> Float[Array, "*stack"]:
  """The foretold share ``r`` of block vectors, for every stacked layer.

  Args:
    g: the gradient.
    m: the momentum, whose bias ``correction`` corrects: ``m^ = m / c``.
    correction: ``c``.
    stack_ndim: number of axes that stack layers, behind that of a block's elements.
  """
  axes = (0, *range(1 + stack_ndim, g[0].ndim))
  m = [part.astype(like.dtype) for part, like in zip(m, g, strict=True)]
  c = correction.astype(g[0].dtype)
  longer = jnp.maximum(c * inner(g, g, axes), inner(m, m, axes) / c)
  # In two steps, since the derivative of a quotient has the square of what divides.
  root = jnp.sqrt(jnp.where(longer > 0, longer, 1))
  share = inner(g, m, axes) / root / root
  return jnp.where(jnp.isfinite(share), share, 0)


def weight_of_the_next(k: Int[Array, ""]) -> Float[Array, ""]:
  """Weight in the moving average of ``r`` of a gradient that comes after ``k`` others.

  Nothing could foretell the first, which leaves the average at the one that it starts
  at. The second takes its place, and from then on all weights add up to one.
  """
  # Rounded alike in both places, so that the second's weight is exactly one.
  memory = jnp.asarray(MEMORY, jnp.result_type(float))
  before = jnp.maximum(k, 1).astype(memory.dtype)
  return jnp.where(k > 0, (1 - memory) / (1 - memory**before), 0)


def averaged(
  average: Float[Array, "*stack"],
  share: Float[Array, "*stack"],
  weight: Float[Array, ""],
) -> Float[Array, "*stack"]:
  """The moving average of ``r`` with one more share."""
  return average + weight.astype(average.dtype) * (
    share.astype(average.dtype) - average
  )


def kappa_of(averages: Float[Array, "*layers"]) -> Float[Array, "*layers"]:
  """``kappa`` of averages of ``r``."""
  return jnp.clip(averages, 0, 1)
