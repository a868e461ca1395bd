"""What a gradient must not bring into a state."""

import jax.numpy as jnp
import numpy as np

from mbf_optax._optimizers.faults import without_faults


def test_elements_that_cannot_be_squared_become_zeros():
  g = {"a": jnp.asarray([1.0, jnp.nan, jnp.inf, 1e30, -2.0])}
  np.testing.assert_array_equal(without_faults(g)["a"], [1, 0, 0, 0, -2])


def test_half_precision_is_squared_in_single():
  half = jnp.asarray([300.0, jnp.inf], jnp.float16)  # 300^2 overflows float16 alone
  np.testing.assert_array_equal(without_faults(half), [300, 0])
  assert without_faults(half).dtype == jnp.float32


def test_squares_of_what_is_left_can_be_added_up():
  g = without_faults(jnp.full(1_000_000, 1e16))
  assert np.all(g > 0)
  assert jnp.isfinite(jnp.sum(jnp.square(g)))
  np.testing.assert_array_equal(without_faults(jnp.full(3, 1e17)), 0)
