"""Statistics as matrices to take powers of: trusted as far as they are filled.

``A + lambda I`` with ``A = (1 - alpha) G / (c tau) + alpha I`` and ``tau`` the mean
diagonal of ``G / c``. The fewer gradient vectors ``G`` is made of, beside its order
``n``, the closer ``alpha = n / (n + N)`` is to one and the matrix to the identity, as
in Ledoit and Wolf's estimate of a covariance matrix (2004). A moving average of decay
``beta`` is worth ``(1 + beta) c / ((1 - beta) (2 - c))`` independent gradients.
"""

import functools

import jax
import jax.numpy as jnp

from mbf_optax._linalg.statistics import Regularizer, Spectrum, reciprocal
from mbf_optax._mesh import devices
from mbf_optax._tree.shapes import Array, Float


def shrunk(
  correction: Float[Array, ""],
  ema: jax.typing.ArrayLike,
  damping: jax.typing.ArrayLike,
) -> Regularizer:
  """How statistics with the bias correction ``c`` are shrunk and damped."""

  @functools.cache
  def of_dtype(dtype: jnp.dtype) -> tuple[Float[Array, ""], Float[Array, ""]]:
    beta, level, c = (
      devices.replicated(value, dtype) for value in (ema, damping, correction)
    )
    return (1 + beta) * c / ((1 - beta) * (2 - c)), level

  def regularize(
    spectrum: Spectrum,
  ) -> tuple[Float[Array, "*batch"], Float[Array, "*#batch"]]:
    dtype = spectrum.mean_diagonal.dtype
    samples, level = of_dtype(dtype)
    n, sharers = (jnp.asarray(v, dtype) for v in (spectrum.order, spectrum.sharers))
    alpha = n / (n + sharers * samples)
    # The bias correction cancels: it is in the statistics and in their mean diagonal.
    return (1 - alpha) * reciprocal(spectrum.mean_diagonal), alpha + level

  return regularize
