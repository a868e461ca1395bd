"""Updates can be differentiated, as meta-learning does, wherever Adam's can be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests.contract.common import each_transformation, make, random_tree

SHAPES = {
  "Dense_0": {"kernel": (20, 6), "bias": (6,)},
  "Dense_uneven": {"kernel": (8, 6)},
  "Conv_0": {"kernel": (3, 3, 2, 4), "bias": (4,)},
  "shared": {"kernel": (7, 5), "bias": (5,)},
  "stack": {"kernel": (2, 3, 5), "bias": (2, 5)},
  "norm": {"scale": (3,)},
  "dead": {"kernel": (6, 5)},
}
STEPS = 2


def wide_tree(seed):
  """In the widest dtype that is on."""
  return random_tree(seed, SHAPES, jnp.result_type(float))


def partition():
  """Layers of two sides, of one, and in parts."""
  return mbf_optax.flax_partition(block_limit=8, overrides=[("shared/", "shared")])


def gradients():
  """Of some steps: noise, rows of scales of their own, and a layer without any."""
  found = [wide_tree(seed) for seed in range(STEPS)]
  scales = jnp.logspace(-2, 2, 8)[:, None]
  for tree in found:
    tree["Dense_uneven"]["kernel"] = scales * tree["Dense_uneven"]["kernel"]
    tree["dead"] = jax.tree.map(jnp.zeros_like, tree["dead"])
    tree["norm"]["scale"] = tree["norm"]["scale"].at[1].set(0)
    # A neuron whose input is never active.
    tree["shared"]["kernel"] = tree["shared"]["kernel"].at[:, 2].set(0)
    tree["shared"]["bias"] = tree["shared"]["bias"].at[2].set(0)
  # One that oscillates has no persistence.
  found[1]["stack"] = jax.tree.map(jnp.negative, found[0]["stack"])
  return found


def outcome(tx, given):
  """A number that depends on all updates of some steps."""
  params = wide_tree(9)
  state, total = tx.init(params), 0.0
  for step, g in enumerate(given):
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
    total += optax.tree.vdot(wide_tree(20 + step), updates)
  return total


@each_transformation
def test_derivatives_of_updates_are_those_of_finite_differences(name):
  with jax.enable_x64(True):
    tx = make(name, inverse_update_period=1, partition=partition())
    given = gradients()
    directions = [
      jax.tree.map(lambda g, v: jnp.abs(g) * v, g, wide_tree(40 + i))
      for i, g in enumerate(given)
    ]

    def along(distance):
      moved = jax.tree.map(lambda g, v: g + distance * v, given, directions)
      return outcome(tx, moved)

    along = jax.jit(along)
    there = jax.jit(jax.grad(lambda trees: outcome(tx, trees)))(given)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(there))
    expected = (along(1e-4) - along(-1e-4)) / 2e-4
    np.testing.assert_allclose(optax.tree.vdot(there, directions), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["mbf", "mbf_adam"])
def test_derivatives_at_small_gradients_are_finite(name):
  """Float32 holds their squares, and not their fourth powers."""
  tx = make(name, partition=partition())
  given = jax.tree.map(lambda g: 1e-10 * g, gradients())
  there = jax.jit(jax.grad(lambda trees: outcome(tx, trees)))(given)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(there))
