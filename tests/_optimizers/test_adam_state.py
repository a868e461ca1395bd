"""The state of ``mbf_adam`` before the first gradient, array by array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbf_optax._optimizers.adam_state import init_state
from mbf_optax._optimizers.layers import Layers
from mbf_optax._partition.layer import Layer, read

PARAMS = {
  "dense": jnp.ones((4, 6), jnp.bfloat16),
  "norm": jnp.ones(6),
  "stack": jnp.ones((2, 5, 4, 6)),
}
READINGS = [
  read("dense", (4, 6), Layer((0,), "two_sided")),
  read("norm", (6,), Layer(estimator="rms")),
  read("stack", (2, 5, 4, 6), Layer((2,), "shared", (0, 1))),
]


def state(params=PARAMS, readings=READINGS, **options):
  return init_state(optax.scale_by_adam(**options), Layers.of(readings), params)


def test_the_moments_of_adam_are_zeros_in_the_shapes_of_the_parameters():
  """Float32 or wider, but for the first where another dtype is asked for."""
  adam = state(mu_dtype=jnp.bfloat16).adam
  assert adam.count == 0
  for moments, dtype in ((adam.mu, jnp.bfloat16), (adam.nu, jnp.float32)):
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {np.dtype(dtype)}
    for moment, param in zip(moments.values(), PARAMS.values(), strict=True):
      np.testing.assert_array_equal(moment, np.zeros(param.shape))


def test_layers_with_matrices_have_a_curvature_and_a_foretold_share_a_layer():
  found = state()
  assert found.bias_correction == 0
  assert found.bias_correction.shape == ()
  assert list(found.curvature) == ["dense", "stack"]
  assert jax.tree.map(np.shape, found.foretold) == {"dense": (), "stack": (2, 5)}
  assert all((share == 1).all() for share in found.foretold.values())
  statistics = found.curvature["stack"].statistics  # one part of four inputs
  assert statistics.shape == (2, 5, 1, 4, 4)


@pytest.mark.parametrize("empty", [{}, None, {"a": optax.MaskedNode()}])
def test_a_tree_without_leaves_has_numbers_in_place_of_layers(empty):
  """``optax.tree.map_params`` asks for leaves there."""
  found = state(empty, [])
  for number in (found.foretold, found.curvature):
    assert isinstance(number, jax.Array)
    assert number.shape == ()
  assert jax.tree.leaves((found.adam.mu, found.adam.nu)) == []
