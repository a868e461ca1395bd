"""Powers of a matrix between the identity and the inverse, from a few inverses.

For a matrix ``A`` whose eigenvalues lie in ``[1, bound]``, and for every exponent ``p``
in ``[0, 1]``,

    A^(-p)  ~=  w_0 I + w_1 A^(-1) + sum_(j >= 2) w_j (A + s_j I)^(-1).

The shifts ``s_j`` depend on the bound alone, the weights on the exponent too, so that
one set of inverses serves all exponents. ``p = 0`` gives exactly the identity and
``p = 1`` exactly the inverse. A matrix ``M`` with eigenvalues in ``[low, high]`` is
``low A``: the bound is ``high / low``, and ``M^(-p)`` the sum for ``A`` times
``low^(-p)``.

Where the numbers come from. Such sums map to each other under ``x -> bound / x`` and
``p -> 1 - p``, so the best shifts are symmetric: ``s_j s_(j') = bound``. That leaves
two distances from ``sqrt(bound)``. `_DISTANCES` minimizes the worst relative error over
all exponents, where the poles of Hale, Higham and Trefethen serve the root alone, and
comes out three times better. The weights are least squares in relative error, for
Chebyshev points of ``p`` and ``log(bound)``; the table is the polynomial through them.

Nothing cancels: the absolute values of the summands add up to 1.03 ``x^(-p)`` at most.

References:
  Hale, Higham and Trefethen, "Computing A^alpha, log(A), and related matrix functions
  by contour integrals", SIAM J. Numer. Anal. 46, 2008.
"""

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from mbf_optax._tree.shapes import Array, Float

Real = TypeVar("Real", float, jax.Array)

# The inverses of a sum, A's own among them. The worst relative errors over all
# exponents, for bounds of 641, 7851 and 40971 (64, 785 and 4097 elements with a damping
# of 0.1 of their mean): 2.7e-4, 1.6e-3 and 3.9e-3. Four poles, the distance
# (0.2569, 0.4823, 3.6034, -3.2039) and the middle, would give 1.7e-3, 7.3e-3, 1.5e-2.
POLES = 5

# What the table covers. A smaller bound is served as the least one.
LEAST_BOUND, GREATEST_BOUND = 8.0, 1e7

# With L = log(bound), log(s) = L / 2 -+ L (c_0 + c_1 / L + c_2 / L^2 + c_3 / L^3).
_DISTANCES = ((0.3033, 0.6275, 5.2915, -4.7316), (0.1043, 0.1835, 1.3184, -1.1082))
_EXPONENT_DEGREE, _BOUND_DEGREE = 8, 14
_SAMPLES = 64  # eigenvalues at which an error is counted, Chebyshev points of their log


def poles(bound: Float[Array, "*k"]) -> Float[Array, "poles *k"]:
  """The shifts of the matrices to invert.

  Args:
    bound: float32 or float64, may be traced: the greatest eigenvalue, where the least
      is 1. From 8 to 1e7; beyond, the nearest of the two is taken.

  Returns:
    In the dtype of ``bound``: 0, then positive numbers in rising order, ``POLES`` in
    all.

  Examples:
    >>> import jax.numpy as jnp
    >>> poles(jnp.array([100.0, 1000.0])).shape
    (5, 2)
  """
  logs = _log_shifts(_log(bound))
  return jnp.stack([jnp.zeros_like(logs[0]), *(jnp.exp(log) for log in logs)])


def weights(
  exponent: Float[Array, "*k"], bound: Float[Array, "*k"]
) -> Float[Array, "terms *k"]:
  """The weights of the identity and of the inverses.

  Args:
    exponent: may be traced: p of ``A^(-p)``, cut to ``[0, 1]``.
    bound: as for `poles`.

  Returns:
    ``POLES + 1`` numbers in the dtype of ``bound``: the weight of the identity, then
    one for each of the `poles`.

  Examples:
    >>> import jax.numpy as jnp
    >>> bound, eigenvalues = jnp.float32(100.0), jnp.array([1.0, 4.0, 100.0])
    >>> first, *others = weights(jnp.float32(0.5), bound)
    >>> inverses = (w / (eigenvalues + s) for w, s in zip(others, poles(bound)))
    >>> print(jnp.round(first + sum(inverses), 3))
    [1.  0.5 0.1]
  """
  log_bound = _log(bound)
  p = jnp.clip(jnp.asarray(exponent, log_bound.dtype), 0, 1)
  terms = jnp.einsum(
    "jkl,k...,l...->j...",
    jnp.asarray(_table(), log_bound.dtype),
    _chebyshev(2 * p - 1, _EXPONENT_DEGREE),
    _chebyshev(_position(log_bound), _BOUND_DEGREE),
    precision=jax.lax.Precision.HIGHEST,
  ) * jnp.expand_dims(p * (1 - p), 0)
  # The powers of the bound and of the shifts make every term of the order of one. The
  # ends are exact, as p (1 - p) is 0 there and an exponential of 0 is 1.
  identity = (1 - p + terms[0]) * jnp.exp(-p * log_bound)
  powers = [jnp.exp((1 - p) * log) for log in _log_shifts(log_bound)]
  shifted = [term * power for term, power in zip(terms[2:], powers, strict=True)]
  return jnp.stack([identity, p + terms[1], *shifted])


def _log(bound: Float[Array, "*k"]) -> Float[Array, "*k"]:
  return jnp.log(jnp.clip(bound, LEAST_BOUND, GREATEST_BOUND))


def _position(log_bound: Float[Array, "*k"]) -> Float[Array, "*k"]:
  """-1 for the least bound of the table, 1 for the greatest."""
  least, greatest = math.log(LEAST_BOUND), math.log(GREATEST_BOUND)
  return 2 * (log_bound - least) / (greatest - least) - 1


def _log_shifts(log_bound: Real) -> list[Real]:
  """Logarithms of the positive shifts, in rising order."""
  far, near = (
    c[0] * log_bound + c[1] + (c[2] + c[3] / log_bound) / log_bound for c in _DISTANCES
  )
  return [log_bound / 2 + distance for distance in (-far, -near, near, far)]


def _chebyshev(x: Float[Array, "*k"], degree: int) -> Float[Array, "{degree+1} *k"]:
  """The polynomials T_0, ..., T_degree at ``x`` in [-1, 1]."""
  orders = jnp.arange(degree + 1, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
  # At the ends themselves the derivative of arccos is infinite.
  end = 1 - float(jnp.finfo(x.dtype).eps)
  return jnp.cos(orders * jnp.expand_dims(jnp.arccos(jnp.clip(x, -end, end)), 0))


@functools.cache
def _table() -> Float[np.ndarray, "terms exponents bounds"]:
  """Coefficients of the terms over ``p (1 - p)``, float64.

  They are for products of Chebyshev polynomials in ``2 p - 1`` and in the bound's
  `_position`.
  """
  exponents = chebyshev.chebpts1(_EXPONENT_DEGREE + 1)
  positions = chebyshev.chebpts1(_BOUND_DEGREE + 1)
  least, greatest = math.log(LEAST_BOUND), math.log(GREATEST_BOUND)
  values = [
    [
      _fitted_terms((x + 1) / 2, least + (y + 1) / 2 * (greatest - least))
      for y in positions
    ]
    for x in exponents
  ]
  return np.einsum(
    "kx,ly,xyj->jkl",
    np.linalg.inv(chebyshev.chebvander(exponents, _EXPONENT_DEGREE)),
    np.linalg.inv(chebyshev.chebvander(positions, _BOUND_DEGREE)),
    np.array(values),
  )


def _fitted_terms(p: float, log_bound: float) -> Float[np.ndarray, "terms"]:
  """The terms over ``p (1 - p)``: least squares in relative error."""
  log_x = (chebyshev.chebpts1(_SAMPLES) + 1) / 2 * log_bound
  x = np.exp(log_x)
  columns = [np.full_like(x, math.exp(-p * log_bound)), 1 / x]
  columns += [math.exp((1 - p) * s) / (x + math.exp(s)) for s in _log_shifts(log_bound)]
  sought = np.exp(-p * log_x) - (1 - p) * columns[0] - p * columns[1]
  relative = np.exp(p * log_x)
  design = np.stack(columns, axis=1) * relative[:, None]
  return np.linalg.lstsq(design, sought * relative)[0] / (p * (1 - p))
