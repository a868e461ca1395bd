"""Parameters that cannot be trained are refused by their path, with the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
FACTORIES = [mbf_optax.scale_by_mbf, mbf_optax.scale_by_mbf_adam]


def refused(*parts):
  return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, parts)))


@pytest.mark.parametrize("factory", [*FACTORIES, mbf_optax.summarize])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_integers_and_booleans(factory, dtype):
  params = {**PARAMS, "step": {"count": jnp.zeros(2, dtype)}}
  remedies = "eqx.filter", "nnx.split", "optax.set_to_zero", "optax.partition"
  with refused("step/count", jnp.dtype(dtype).name, *remedies):
    factory(params) if factory is mbf_optax.summarize else factory().init(params)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize(
  ("leaf", "what"), [(jax.random.key(0), "key"), (3, "is 3"), (jnp.tanh, "is <")]
)
def test_keys_integers_and_functions(factory, leaf, what):
  with refused("'other/leaf'", what, "only arrays of floating or complex numbers"):
    factory().init({**PARAMS, "other": {"leaf": leaf}})


@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_python_and_numpy_numbers_are_trained_as_under_adam(factory):
  params = {"a": 1.0, "b": np.float32(2.0), "c": np.ones((2, 5), np.float32)}
  tx = factory(0.1)
  updates, state = tx.update(params, tx.init(params), params)
  assert jax.tree.map(jnp.shape, updates) == {"a": (), "b": (), "c": (2, 5)}
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((updates, state)))
