"""A gradient gone bad passes: it leaves nothing behind and spoils no other block."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from tests.contract.common import random_tree

SHAPES = {
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (3, 2), "bias": (2,)},
  "low_rank": {"kernel": (4, 2)},
  "norm": {"scale": (3,)},
  "shared": {"kernel": (3, 2)},
}
PARTITION = mbf_optax.flax_partition(
  rank=3, overrides=[("low_rank", "low_rank"), ("shared", "shared")]
)
STEPS = 6
BAD_STEP = 2
# An element of each leaf, the one that goes bad.
PLACES = {
  ("conv", "kernel"): (0, 1, 0, 1),
  ("conv", "bias"): (1,),
  ("full", "kernel"): (2, 1),
  ("full", "bias"): (1,),
  ("low_rank", "kernel"): (0, 1),
  ("norm", "scale"): (1,),
  ("shared", "kernel"): (1, 1),
}


GRADIENTS = [random_tree(seed, SHAPES) for seed in range(STEPS)]


@functools.cache
def plain():
  tx = mbf_optax.scale_by_mbf(
    damping=0.1,
    curvature_update_period=1,
    inverse_update_period=2,
    partition=PARTITION,
  )
  return tx, jax.jit(tx.update)


@functools.cache
def drop_in():
  tx = mbf_optax.mbf_adam(
    0.1,
    curvature_update_period=1,
    inverse_update_period=1,
    partition=PARTITION,
  )
  return tx, jax.jit(tx.update)


def follow(transformation, gradients):
  tx, update = transformation()
  state = tx.init(gradients[0])
  for gradient in gradients:
    updates, state = update(gradient, state)
    yield updates, state


@functools.cache
def clean_run():
  return list(follow(plain, GRADIENTS))


def broken(module, name, value):
  """The gradients with one element replaced at the bad step."""
  gradients = list(GRADIENTS)
  leaf = gradients[BAD_STEP][module][name].at[PLACES[module, name]].set(value)
  gradients[BAD_STEP] = {
    **gradients[BAD_STEP],
    module: {**gradients[BAD_STEP][module], name: leaf},
  }
  return gradients


def blocks_of(module, name):
  """Whether each element belongs to the mini-block of the element to be replaced."""
  mask = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), GRADIENTS[0])
  place = PLACES[module, name]
  if module == "norm" or (module, name) == ("conv", "bias"):
    mask[module][name][place] = True
  elif module == "conv":
    mask[module][name][..., place[-1]] = True
  else:
    for leaf in mask[module].values():
      leaf[..., place[-1]] = True
  return mask


def zeroed(tree, mask):
  return jax.tree.map(lambda leaf, bad: jnp.where(bad, 0, leaf), tree, mask)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-30], ids=str)
@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_bad_gradient_passes(module, name, value):
  """State and later updates are finite, the other blocks notice nothing."""
  mask = blocks_of(module, name)
  if module == "shared":  # one matrix for all blocks of the layer
    mask[module] = jax.tree.map(np.ones_like, mask[module])
  runs = zip(follow(plain, broken(module, name, value)), clean_run(), strict=True)
  for step, ((updates, state), (clean, _)) in enumerate(runs):
    chex.assert_tree_all_finite(state)
    if step != BAD_STEP or np.isfinite(value):
      chex.assert_tree_all_finite(updates)
    chex.assert_trees_all_equal(zeroed(updates, mask), zeroed(clean, mask))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_bad_gradient_never_enters_the_statistics(module, name, value):
  """They are those of a run in which the block's gradient was zero."""
  *_, (_, state) = follow(plain, broken(module, name, value))
  gradients = list(GRADIENTS)
  gradients[BAD_STEP] = zeroed(gradients[BAD_STEP], blocks_of(module, name))
  *_, (_, expected) = follow(plain, gradients)
  chex.assert_trees_all_equal(state.curvature, expected.curvature)


@pytest.mark.parametrize("step", [0, BAD_STEP])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-30, 0.0], ids=str)
def test_a_bad_gradient_everywhere(step, value):
  """Also of the drop-in, with relative damping and Adam's length."""
  gradients = list(GRADIENTS)
  gradients[step] = jax.tree.map(lambda g: jnp.full_like(g, value), gradients[step])
  for transformation in (plain, drop_in):
    for count, (updates, state) in enumerate(follow(transformation, gradients)):
      chex.assert_tree_all_finite(state)
      if count != step or np.isfinite(value):
        chex.assert_tree_all_finite(updates)


def test_damping_that_falls_to_zero_keeps_the_last_good_inverse():
  """The statistics of one gradient are singular without damping.

  What is low-rank goes on with its last damping.
  """
  tx = mbf_optax.scale_by_mbf(
    damping=lambda count: jnp.where(count < 2, 0.1, 0.0),
    momentum=0.0,
    curvature_update_period=1,
    inverse_update_period=1,
    partition=PARTITION,
  )
  update = jax.jit(tx.update)
  gradient = jax.tree.map(lambda g: jnp.zeros_like(g).at[0].set(2.0), GRADIENTS[0])
  gradient["norm"]["scale"] = jnp.ones(3)
  gradient["conv"]["bias"] = jnp.ones(2)
  state = tx.init(gradient)
  for count in range(5):
    updates, state = update(gradient, state)
    chex.assert_tree_all_finite((updates, state))
    if count == 1:
      good = state.curvature
  for path in ("conv/kernel", "full/kernel", "shared/kernel"):
    chex.assert_trees_all_equal(state.curvature[path].inverse, good[path].inverse)
  kept = state.curvature["low_rank/kernel"].damping
  chex.assert_trees_all_equal(kept, jnp.full_like(kept, 0.1))
