"""States are found in any chain or wrapper, those of ``nnx.Optimizer`` as they are."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import mbf_optax
from mbf_optax._optimizers.found import find_states, is_state, plain

PARAMS = {"a": {"kernel": jnp.ones((4, 5))}, "b": {"kernel": jnp.ones((4, 5))}}


def test_all_states_are_found_in_their_order():
  tx = optax.partition(
    {"x": mbf_optax.mbf(0.1), "y": mbf_optax.mbf_adam(0.1)}, {"a": "x", "b": "y"}
  )
  first, second = find_states("caller", tx.init(PARAMS))
  assert isinstance(first, mbf_optax.MbfState)
  assert isinstance(second, mbf_optax.MbfAdamState)
  assert is_state(first)
  assert not is_state(optax.EmptyState())


def test_without_any_the_caller_is_named():
  with pytest.raises(ValueError, match=r"caller: there is no MbfState or MbfAdamState"):
    find_states("caller", optax.adam(0.1).init(PARAMS))


@pytest.fixture
def training():
  """An ``nnx.Optimizer``, its transformation, parameters and a gradient."""
  model = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
  tx = mbf_optax.mbf_adam(1e-2)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  gradients = nnx.grad(lambda m: m(jnp.ones(4)).sum())(model)
  return optimizer, tx, nnx.state(model, nnx.Param), gradients


def test_variables_are_taken_off_and_put_back(training):
  optimizer, tx, params, _ = training
  bare, restore = plain(optimizer.opt_state)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(bare))
  chex.assert_trees_all_equal_structs(restore(bare), optimizer.opt_state)
  chex.assert_trees_all_equal(
    jax.tree.leaves(bare), jax.tree.leaves(tx.init(nnx.as_pure(params)))
  )


def test_the_state_of_an_nnx_optimizer_is_taken_as_it_is(training):
  optimizer, tx, params, gradients = training
  assert list(mbf_optax.metrics(optimizer.opt_state)) == ["kernel"]
  mbf_optax.check_state(tx, optimizer.opt_state, params)
  warm = mbf_optax.warm_start(tx, optimizer.opt_state, params, [gradients])
  chex.assert_trees_all_equal_structs(warm, optimizer.opt_state)
  (state,) = find_states("test", plain(warm)[0])
  assert state.bias_correction == 1
