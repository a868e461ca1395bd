"""Muon reads every kernel of a Flax network as a matrix."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from benchmarks import baselines
from benchmarks.baselines.muon import matrices
from benchmarks.models import ResNet, Transformer


def as_matrix(array, numbers):
  """Inputs by outputs."""
  inputs = numbers.reduction_axis
  inputs = inputs if isinstance(inputs, tuple) else (inputs,)
  rows = int(np.prod([array.shape[axis] for axis in inputs]))
  return np.moveaxis(array, inputs, range(len(inputs))).reshape(rows, -1)


def network():
  """A transformer's and a convolution's parameters."""
  model = Transformer(11, 8, 1, heads=2)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  images = jnp.ones((1, 4, 4, 2))
  conv = jax.eval_shape(nn.Conv(6, (3, 3)).init, jax.random.key(0), images)
  shapes = {**params["params"], "conv": conv["params"]}
  return jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape), shapes
  )


@pytest.mark.promotes
def test_updates_are_orthogonal_along_inputs_and_outputs():
  params, tx = network(), baselines.muon(1.0)
  updates, _ = tx.update(params, tx.init(params), params)

  def check(path, numbers, update):
    if numbers is None:
      assert "kernel" not in jax.tree_util.keystr(path)
      return 0
    values = np.linalg.svd(as_matrix(np.asarray(update), numbers), compute_uv=False)
    assert values.min() > 0.5 * values.max(), path
    return 1

  def is_numbers(node):
    return node is None or isinstance(node, MuonDimensionNumbers)

  found = jax.tree_util.tree_map_with_path(
    check, matrices(params), updates, is_leaf=is_numbers
  )
  # Four of attention, two of the perceptron, the head, the convolution.
  assert sum(jax.tree.leaves(found)) == 8


@pytest.mark.promotes
def test_weights_of_both_kinds_decay():
  model = ResNet(8)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
  params = jax.tree.map(lambda p: jnp.ones(p.shape), params["params"])
  tx = baselines.muon(0.1, weight_decay=0.5)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_allclose(leaf, -0.05, rtol=1e-6)


@pytest.mark.promotes
def test_arrays_of_two_axes_move_as_with_optax():
  params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
  gradients = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(0), p.shape), params
  )
  found = [
    tx.update(gradients, tx.init(params), params)[0]
    for tx in (baselines.muon(0.1), optax.contrib.muon(0.1))
  ]
  jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.promotes
def test_a_head_is_no_matrix_and_has_the_other_rate():
  params = network()
  assert matrices(params)["Dense_0"]["kernel"] is not None
  found = matrices(params, head="Dense_0")
  assert found["Dense_0"]["kernel"] is None
  assert found["TransformerBlock_0"]["Dense_0"]["kernel"] is not None
  tx = baselines.muon(1.0, 0.01, head="Dense_0")
  updates, _ = tx.update(params, tx.init(params), params)
  nadam = optax.nadam(0.01)  # what optax's muon takes for the others
  head = params["Dense_0"]["kernel"]
  expected, _ = nadam.update(head, nadam.init(head))
  np.testing.assert_allclose(updates["Dense_0"]["kernel"], expected, rtol=1e-4)
  assert jnp.abs(updates["conv"]["kernel"]).max() > 0.05
