"""Rows whose gradients have scales of their own, as inputs that nobody normalized have.

Damping is relative to the mean of a diagonal. Where scales differ by orders of
magnitude, rows of small scale are far below it, and a matrix would leave them alone:
their steps would be shorter than Adam's by as many orders. With ``D`` the diagonal over
its mean, ``u = (mean sqrt(D))^2`` in ``(0, 1]`` is the share of rows that the others'
scale is spread over: one where all rows have one scale, 0.21 for inputs of scales
between 0.01 and 100. From 0.2 on rows are scaled as Adam would scale them, by
``D^(-1/2)``.
"""

import jax.numpy as jnp

from mbf_optax._linalg.statistics import reciprocal
from mbf_optax._tree.shapes import Array, Float

EVEN, UNEVEN = 0.4, 0.2
"""Shares of rows from which on nothing is scaled, and everything as Adam does."""

_LEAST = 1e-8  # of a relative diagonal: rows without any gradient have no scale


def row_scales(
  diagonals: Float[Array, "n *batch"],
  order: Float[Array, "*#batch"],
  scale: Float[Array, "*batch"],
) -> Float[Array, "n *batch"]:
  """``D^(-s/2)`` with ``s = clip((0.4 - u) / (0.4 - 0.2), 0, 1) / 2``.

  On both sides of a matrix that is ``D^(-s)``: between one and ``D^(-1/2)``. The first
  few gradients of a matrix are uneven by chance, so ``u`` is that of the diagonal after
  shrinkage.

  Args:
    diagonals: of the matrices, at any scale.
    order: number of rows; rows beyond it are zero.
    scale: what the matrices are multiplied by, ``1 - alpha`` over their mean diagonal.

  Examples:
    >>> import jax.numpy as jnp
    >>> even = jnp.array([1.0, 2.0, 4.0])
    >>> print(row_scales(even, jnp.float32(3), 1 / even.mean()))
    [1. 1. 1.]
    >>> uneven = jnp.array([1e-4, 1e-4, 1e-4, 1e-4, 1.0, 1e-4])
    >>> print(row_scales(uneven, jnp.float32(6), 1 / uneven.mean()).round(2))
    [6.39 6.39 6.39 6.39 0.64 6.39]
  """
  mean = jnp.sum(diagonals, axis=0) / order
  relative = diagonals * reciprocal(mean)[None]
  trust = jnp.clip(scale * mean, 0, 1)
  rows = jnp.arange(len(diagonals), dtype=mean.dtype).reshape(-1, *[1] * mean.ndim)
  shrunk = jnp.where(rows < order[None], trust[None] * relative + (1 - trust)[None], 0)
  share = jnp.square(jnp.sum(jnp.sqrt(shrunk), axis=0) / order)
  power = jnp.clip((EVEN - share) / (EVEN - UNEVEN), 0, 1) / 4
  return (relative + _LEAST) ** -power[None]
