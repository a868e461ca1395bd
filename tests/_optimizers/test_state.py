"""Making states, also of shapes alone, and checking those that are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._optimizers import state as states

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
FACTORIES = {"mbf": mbf_optax.mbf, "mbf_adam": mbf_optax.mbf_adam}
each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@each_factory
def test_abstract_parameters_give_the_state_of_real_ones(factory):
  """As optax's own transformations do, which its sharding tests ask for."""
  shapes = jax.eval_shape(lambda: PARAMS)
  tx = factory(0.1)
  given, expected = tx.init(shapes), tx.init(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, given, expected)
  abstract = jax.eval_shape(tx.init, shapes)
  assert jax.tree.map(lambda s: (s.shape, s.dtype), abstract) == jax.tree.map(
    lambda a: (a.shape, a.dtype), expected
  )


def test_numbers_become_arrays_and_nothing_else_does():
  shape = jax.ShapeDtypeStruct((2,), jnp.float32)
  given = {"a": 1.0, "b": np.ones(2), "c": shape, "d": jnp.ones(2), "e": "text"}
  found = states.as_arrays(given)
  assert isinstance(found["a"], jax.Array)
  assert isinstance(found["b"], jax.Array)
  assert found["c"] is shape
  assert found["d"] is given["d"]
  assert found["e"] == "text"


def test_zeros_are_wide():
  tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64)}
  found = states.zeros(tree)
  assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [jnp.float32, jnp.complex64]
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))


@each_factory
def test_a_state_of_another_partition_is_refused_by_the_layers_name(factory):
  state = factory(0.1, partition=mbf_optax.flax_partition("shared")).init(PARAMS)
  tx = factory(0.1, partition=mbf_optax.flax_partition("full"))
  with pytest.raises(ValueError, match="'curvature/Dense_0/kernel/statistics' is"):
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
