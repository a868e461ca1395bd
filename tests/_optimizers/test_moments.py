"""What Adam divides, against optax's own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbf_optax._optimizers import moments

GRADIENTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
B1, B2 = 0.8, 0.9


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mu_dtype", [None, "bfloat16"])
def test_the_numerator_is_that_of_optax_up_to_a_factor(nesterov, mu_dtype):
  """Times the root of the second moment, its update is what it divides."""
  tx = optax.scale_by_adam(B1, B2, 0.0, mu_dtype=mu_dtype, nesterov=nesterov)
  momentum = moments.nesterov if nesterov else moments.plain
  state = tx.init(jnp.zeros(3))
  for t, g in enumerate(jnp.asarray(GRADIENTS), start=1):
    update, state = tx.update(g, state)
    root = jnp.sqrt(state.nu / (1 - B2**t))
    found = momentum(state, g, B1)
    assert found.dtype == jnp.float32
    # The state's momentum is rounded after optax has used it.
    tolerance = 1e-5 if mu_dtype is None else 1e-2
    factor = 1 if nesterov else 1 - B1**t
    expected = factor * update * root
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_corrected_moments_of_complex_numbers_have_a_real_decay():
  m = jnp.asarray([1 + 2j])
  found = moments.corrected({"a": m}, 0.5, jnp.int32(2))["a"]
  np.testing.assert_allclose(found, (1 + 2j) / 0.75, rtol=1e-6)
  assert jax.tree.leaves(found)[0].dtype == m.dtype
