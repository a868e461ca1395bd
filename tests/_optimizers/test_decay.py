"""Decoupled weight decay: optax's own, but for parameters that are not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._optimizers.decay import decoupled_weight_decay

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}


@pytest.mark.promotes
@pytest.mark.parametrize("decay", [0.1, lambda count: 0.1 / (1 + count)])
def test_the_decay_is_that_of_optax(decay):
  mask = {"Dense_0": {"kernel": True, "bias": False}}
  ours, theirs = (
    decoupled_weight_decay(decay, mask),
    optax.add_decayed_weights(decay, mask),
  )
  states = ours.init(PARAMS), theirs.init(PARAMS)
  for _ in range(2):
    given, first = ours.update(PARAMS, states[0], PARAMS)
    expected, second = theirs.update(PARAMS, states[1], PARAMS)
    states = first, second
    jax.tree.map(np.testing.assert_array_equal, given, expected)


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), jnp.asarray(0.0)])
def test_without_decay_no_parameters_are_needed(zero):
  tx = decoupled_weight_decay(zero, None)
  updates, _ = tx.update(PARAMS, tx.init(PARAMS))
  jax.tree.map(np.testing.assert_array_equal, updates, PARAMS)


@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
@pytest.mark.parametrize("decay", [0.1, jnp.asarray(0.1), lambda count: 0.1])
def test_with_decay_they_are_asked_for(factory, decay):
  tx = factory(0.1, weight_decay=decay)
  state = tx.init(PARAMS)
  with pytest.raises(ValueError, match=r"weight decay needs the parameters.*params"):
    jax.eval_shape(tx.update, PARAMS, state)
