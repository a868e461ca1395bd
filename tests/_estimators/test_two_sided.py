"""Matrices of the inputs and of the outputs of a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._estimators.shared import SharedBlocks
from mbf_optax._estimators.two_sided import TwoSidedBlocks
from mbf_optax._partition.layer import Layer, read


def reading(shape=(4, 3), limit=256):
  return read("kernel", shape, Layer((0,), "two_sided", block_limit=limit))


def transposed(shape=(4, 3), limit=256):
  return read("kernel", shape, Layer((1,), "two_sided", block_limit=limit))


def test_the_inputs_side_is_that_of_shared():
  gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
  states = []
  for kind in (TwoSidedBlocks, SharedBlocks):
    estimator = kind(reading())
    state = estimator.init(jnp.float32)
    states.append(
      estimator.accumulate(state, estimator.entry([gradient]), jnp.float32(0.5))
    )
  np.testing.assert_array_equal(states[0].inputs.statistics, states[1].statistics)


@pytest.mark.parametrize("limit", [256, 2])
def test_sides_of_the_transposed_layer_are_exchanged(limit):
  gradient = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
  states = []
  for r, g in ((reading(limit=limit), gradient), (transposed(limit=limit), gradient.T)):
    estimator = TwoSidedBlocks(r)
    state = estimator.init(jnp.float32)
    states.append(estimator.accumulate(state, estimator.entry([g]), jnp.float32(0.5)))
  one, other = states
  np.testing.assert_allclose(one.inputs.statistics, other.outputs.statistics, rtol=1e-6)
  np.testing.assert_allclose(one.outputs.statistics, other.inputs.statistics, rtol=1e-6)


def test_operations_are_those_of_both_sides():
  counted = TwoSidedBlocks(reading((10, 4))).operations()
  inputs, outputs = 2 * 10 * 10 * 4, 2 * 4 * 10 * 4
  assert counted == (inputs + outputs, inputs + outputs, 2 * 1000 + 2 * 64)


def test_mbf_has_no_two_sides():
  partition = mbf_optax.flax_partition(overrides=[("kernel", "two_sided")])
  tx = mbf_optax.scale_by_mbf(partition=partition)
  with pytest.raises(ValueError, match=r"'kernel'.*two_sided.*mbf does not have"):
    jax.eval_shape(tx.init, {"kernel": jnp.ones((3, 5))})
