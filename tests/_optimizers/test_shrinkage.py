"""How far a matrix is trusted, against the formula and its limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg.statistics import Spectrum
from mbf_optax._optimizers.shrinkage import shrunk


def regularized(mean=3.0, order=4, sharers=2, beta=0.9, steps=5, damping=0.1):
  spectrum = Spectrum(jnp.full((1,), mean), np.full((1,), order), sharers, ())
  c = jnp.float32(1 - beta**steps)
  scale, shift = shrunk(c, beta, damping)(spectrum)
  return float(scale[0]), float(shift[0])


@pytest.mark.parametrize("sharers", [1, 10])
@pytest.mark.parametrize("steps", [1, 3, 200])
def test_a_matrix_is_trusted_as_far_as_it_is_filled(sharers, steps):
  """An average of weights ``w`` is worth ``1 / sum(w^2)`` gradients."""
  weights = 0.1 * 0.9 ** np.arange(steps)
  samples = weights.sum() ** 2 / np.sum(weights**2)
  alpha = 4 / (4 + sharers * samples)
  scale, shift = regularized(sharers=sharers, steps=steps)
  np.testing.assert_allclose(scale, (1 - alpha) / 3, rtol=1e-4)
  np.testing.assert_allclose(shift, alpha + 0.1, rtol=1e-4)


def test_a_regularized_matrix_has_the_mean_diagonal_of_the_identity_damped():
  """Its eigenvalues then lie between ``damping`` and ``damping + n``."""
  scale, shift = regularized(mean=7.0)
  np.testing.assert_allclose(7 * scale + shift, 1.1, rtol=1e-5)


def test_a_matrix_without_any_gradient_is_the_identity_damped():
  scale, shift = regularized(mean=0.0, steps=0)
  assert np.isfinite(scale)
  np.testing.assert_allclose(shift, 1.1, rtol=1e-6)
  assert np.isfinite(regularized(mean=0.0, steps=3)).all()
