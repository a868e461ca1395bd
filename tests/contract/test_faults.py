"""What goes wrong in a long run: none of it stays for longer than it lasts.

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
each_period = pytest.mark.parametrize("periods", [(1, 1), (2, 3), (3, 6)], ids=str)
STEPS, FAULT = 16, 5
DAMPING = 0.1
SHAPES = {
  "batch_stats": {"mean": (2,), "var": (2,)},
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (3, 2), "bias": (2,)},
  "low_rank": {"kernel": (4, 2), "bias": (2,)},
  "matrix": {"kernel": (35, 2)},
  "norm": {"scale": (3,)},
  "shared": {"kernel": (3, 2), "bias": (2,)},
}
PARTITION = mbf_optax.flax_partition(
  "full", rank=3, overrides=[("low_rank", "low_rank"), ("shared", "shared")]
)
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
      partition=PARTITION,
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


def statistics(name, state):
  mbf = state[0] if name == "mbf" else state[0].direction
  return {
    path: layer.statistics
    for path, layer in mbf.curvature.items()
    if hasattr(layer, "statistics")
  }


@each_name
@each_period
@pytest.mark.parametrize("at", [0, FAULT, FAULT + 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-30, 0.0], ids=str)
def test_one_bad_step(name, periods, at, value):
  """The statistics are soon those of a run in good order."""
  good, bad = gradients(), gradients()
  bad[at] = in_parameters(value, bad[at])
  clean, faulty = run(name, periods, good), run(name, periods, bad)
  if at > 0 and at + WINDOW * periods[0] < STEPS:
    expected, given = (statistics(name, visited[-1][1]) for visited in (clean, faulty))
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
    step["low_rank"] = everywhere(0.0, step["low_rank"])
  visited, clean = run(name, periods, late), run(name, periods, good)
  for layer in ("full", "shared", "low_rank"):
    chex.assert_trees_all_equal(visited[FAULT - 1][0][layer], PARAMS[layer])
    moved, usual = (
      optax.tree.norm(jax.tree.map(jnp.subtract, end[-1][0][layer], PARAMS[layer]))
      for end in (visited, clean)
    )
    assert 0 < moved < 10 * usual


@each_name
@each_period
@pytest.mark.parametrize("layer", ["conv", "full", "low_rank", "matrix", "shared"])
def test_a_layer_frozen_half_way(name, periods, layer):
  """It comes to rest, and the others notice nothing."""
  good, frozen = gradients(), gradients()
  for step in frozen[FAULT:]:
    step[layer] = everywhere(0.0, step[layer])
  clean, given = run(name, periods, good), run(name, periods, frozen)
  for (params, _, _), (expected, _, _) in zip(given, clean, strict=True):
    for other in expected.keys() - {layer}:
      chex.assert_trees_all_equal(params[other], expected[other])
  assert optax.tree.norm(given[-1][2][layer]) < 2 * optax.tree.norm(
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
