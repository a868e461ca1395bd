"""The product behind the shared statistics."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax.shared import symmetric_product


@pytest.mark.parametrize("shape", [(7, 3), (512, 2), (513, 4), (2, 1100, 3), (2000, 5)])
def test_symmetric_product(shape):
  columns = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  product = np.asarray(symmetric_product(jnp.asarray(columns)))
  np.testing.assert_array_equal(product, np.swapaxes(product, -1, -2))
  expected = columns @ np.swapaxes(columns, -1, -2)
  np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)
