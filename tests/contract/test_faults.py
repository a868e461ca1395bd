"""What goes wrong leaves nothing behind for longer than it lasts.

Parameters, states and updates are watched over whole runs, for every estimator. Periods
and damping are traced, so that each optimizer is compiled once.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests.contract import common

pytestmark = pytest.mark.promotes
each_name = pytest.mark.parametrize("name", ["mbf", "mbf_adam"])
each_period = pytest.mark.parametrize("periods", [(1, 1), (3, 6)], ids=str)
STEPS, FAULT = 16, 5
DAMPING = 0.1
SHAPES = {
  "batch_stats": {"mean": (2,), "var": (2,)},
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (3, 2), "bias": (2,)},
  "matrix": {"kernel": (65, 2)},
  "norm": {"scale": (3,)},
  "other": {"kernel": (4, 2), "bias": (2,)},
  "shared": {"kernel": (3, 2), "bias": (2,)},
}
OTHER = {"mbf": "low_rank", "mbf_adam": "two_sided"}


def partition_of(name):
  overrides = [("other", OTHER[name]), ("shared", "shared")]
  return mbf_optax.flax_partition("full", rank=3, overrides=overrides)


PARAMS = common.random_tree(0, SHAPES)
WINDOW = 10  # steps after which a moving average of 0.7 holds less than 3 percent


def gradients():
  """Of a run in good order; batch statistics are no parameters and have none."""
  steps = [common.random_tree(seed, SHAPES) for seed in range(1, STEPS + 1)]
  for step in steps:
    step["batch_stats"] = jax.tree.map(jnp.zeros_like, step["batch_stats"])
  return steps


def everywhere(value, tree):
  return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)


def in_parameters(value, step):
  """Everywhere but in the batch statistics."""
  return {**everywhere(value, step), "batch_stats": step["batch_stats"]}


@functools.cache
def compiled(name):
  def make(periods, damping):
    return common.make(
      name,
      learning_rate=0.01,
      damping=damping,
      weight_decay=0.0,
      partition=partition_of(name),
      curvature_update_period=periods[0],
      inverse_update_period=periods[1],
    )

  @jax.jit
  def step(params, state, gradient, periods, damping):
    updates, state = make(periods, damping).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, updates

  return make((1, 1), DAMPING).init(PARAMS), step


def run(name, periods, steps, dampings=None):
  """Parameters, states and updates; a step along what is not finite is not taken."""
  state, step = compiled(name)
  params, visited = PARAMS, []
  dampings = [DAMPING] * len(steps) if dampings is None else dampings
  for gradient, damping in zip(steps, dampings, strict=True):
    moved, state, updates = step(params, state, gradient, periods, damping)
    if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)):
      params = moved
      chex.assert_tree_all_finite(updates)
    chex.assert_tree_all_finite((params, state))
    chex.assert_trees_all_equal(params["batch_stats"], PARAMS["batch_stats"])
    visited.append((params, state, updates))
  return visited


def statistics(state):
  """Of every layer that keeps matrices."""
  found = {}
  for path, layer in common.our_state(state).curvature.items():
    sides = layer if isinstance(layer, mbf_optax.TwoSidedState) else (layer,)
    for side, matrices in enumerate(sides):
      if isinstance(matrices, mbf_optax.BlockState):
        found[path, side] = matrices.statistics
  return found


@each_name
@each_period
@pytest.mark.parametrize("at", [0, FAULT])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-30, 0.0], ids=str)
def test_one_bad_step(name, periods, at, value):
  """The statistics are soon those of a run in good order."""
  good, bad = gradients(), gradients()
  bad[at] = in_parameters(value, bad[at])
  clean, faulty = run(name, periods, good), run(name, periods, bad)
  if at > 0 and at + WINDOW * periods[0] < STEPS:
    expected, given = (statistics(visited[-1][1]) for visited in (clean, faulty))
    for path, matrix in given.items():
      error = np.linalg.norm(matrix - expected[path])
      assert error < 0.05 * np.linalg.norm(expected[path]), path


@each_name
@each_period
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, -1e30], ids=str)
def test_the_same_gradient_for_ever(name, periods, value):
  """Too small or too large to square; no gradient at all moves nothing."""
  steps = [in_parameters(value, gradients()[0])] * STEPS
  *_, (params, _, _) = run(name, periods, steps)
  if value == 0:
    chex.assert_trees_all_equal(params, PARAMS)


@each_name
@each_period
def test_no_gradient_at_first(name, periods):
  """Trained layers of the same tree do not hurt those that start late."""
  late, good = gradients(), gradients()
  for step in late[:FAULT]:
    step["full"], step["shared"] = (
      everywhere(0.0, step[m]) for m in ("full", "shared")
    )
    step["other"] = everywhere(0.0, step["other"])
  visited, clean = run(name, periods, late), run(name, periods, good)
  for layer in ("full", "shared", "other"):
    chex.assert_trees_all_equal(visited[FAULT - 1][0][layer], PARAMS[layer])
    moved, usual = (
      optax.tree.norm(jax.tree.map(jnp.subtract, end[-1][0][layer], PARAMS[layer]))
      for end in (visited, clean)
    )
    assert 0 < moved < 10 * usual


@each_name
@each_period
@pytest.mark.parametrize("layer", ["conv", "full", "other", "matrix", "shared"])
def test_a_layer_frozen_half_way(name, periods, layer):
  """It comes to rest, and the others notice nothing."""
  good, frozen = gradients(), gradients()
  for step in frozen[FAULT:]:
    step[layer] = everywhere(0.0, step[layer])
  clean, given = run(name, periods, good), run(name, periods, frozen)
  for (params, _, _), (expected, _, _) in zip(given, clean, strict=True):
    for other in expected.keys() - {layer}:
      chex.assert_trees_all_equal(params[other], expected[other])
  assert optax.tree.norm(given[-1][2][layer]) < 3 * optax.tree.norm(
    given[FAULT][2][layer]
  )


@each_name
@each_period
@pytest.mark.parametrize("rank_one", [False, True])
def test_damping_that_falls_to_zero(name, periods, rank_one):
  """At once or by and by, with gradients that leave the statistics singular or not."""
  steps = gradients()
  if rank_one:
    steps = [steps[0]] * STEPS
  at_once = np.where(np.arange(STEPS) < FAULT, DAMPING, 0.0)
  by_and_by = DAMPING * 10.0 ** -np.arange(0, 3 * STEPS, 3)
  for dampings in (at_once, by_and_by, np.zeros(STEPS)):
    run(name, periods, steps, dampings)


# One element of one step, of every kind of block of ``mbf``.

KINDS = {
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (3, 2), "bias": (2,)},
  "low_rank": {"kernel": (4, 2)},
  "norm": {"scale": (3,)},
  "shared": {"kernel": (3, 2)},
}
ALL_KINDS = mbf_optax.flax_partition(
  "full", rank=3, overrides=[("low_rank", "low_rank"), ("shared", "shared")]
)
FEW = 6
BAD = 2
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


GRADIENTS = [common.random_tree(seed, KINDS) for seed in range(FEW)]


@functools.cache
def plain():
  tx = mbf_optax.scale_by_mbf(
    damping=0.1,
    curvature_update_period=1,
    inverse_update_period=2,
    partition=ALL_KINDS,
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
  leaf = gradients[BAD][module][name].at[PLACES[module, name]].set(value)
  gradients[BAD] = {
    **gradients[BAD],
    module: {**gradients[BAD][module], name: leaf},
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


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-30], ids=str)
@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_bad_gradient_passes(module, name, value):
  """State and later updates are finite, the other blocks notice nothing."""
  mask = blocks_of(module, name)
  if module == "shared":  # one matrix for all blocks of the layer
    mask[module] = jax.tree.map(np.ones_like, mask[module])
  runs = zip(follow(plain, broken(module, name, value)), clean_run(), strict=True)
  for step, ((updates, state), (clean, _)) in enumerate(runs):
    chex.assert_tree_all_finite(state)
    if step != BAD or np.isfinite(value):
      chex.assert_tree_all_finite(updates)
    chex.assert_trees_all_equal(zeroed(updates, mask), zeroed(clean, mask))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_bad_gradient_never_enters_the_statistics(module, name, value):
  """They are those of a run in which the element was zero."""
  *_, (_, state) = follow(plain, broken(module, name, value))
  *_, (_, expected) = follow(plain, broken(module, name, 0.0))
  chex.assert_trees_all_equal(state.curvature, expected.curvature)


def test_damping_that_falls_to_zero_keeps_the_last_good_inverse():
  """The statistics of one gradient are singular without damping.

  What is low-rank goes on with its last damping.
  """
  tx = mbf_optax.scale_by_mbf(
    damping=lambda count: jnp.where(count < 2, 0.1, 0.0),
    momentum=0.0,
    curvature_update_period=1,
    inverse_update_period=1,
    partition=ALL_KINDS,
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
