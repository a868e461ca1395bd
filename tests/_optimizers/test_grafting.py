"""Grafting: whose direction, whose length, and that neither unit nor scale matters."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests import grafted_reference, reference, trees
from tests.contract.common import random_tree

SHAPES = {
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (3, 2), "bias": (2,)},
  "low_rank": {"kernel": (3, 2)},
  "norm": {"scale": (3,)},
  "shared": {"kernel": (3, 2), "bias": (2,)},
}
PARTITION = mbf_optax.flax_partition(
  rank=2, overrides=[("low_rank", "low_rank"), ("shared", "shared")]
)
LAYERS = {  # a kernel and the bias in its blocks
  "conv": ["kernel"],
  "full": ["kernel", "bias"],
  "low_rank": ["kernel"],
  "shared": ["kernel", "bias"],
}
ELEMENTWISE = [("conv", "bias"), ("norm", "scale")]
STEPS = 4


GRADIENTS = [random_tree(seed, SHAPES) for seed in range(STEPS)]


def run(tx, gradients, update=None):
  state, update = tx.init(gradients[0]), update or jax.jit(tx.update)
  for gradient in gradients:
    updates, state = update(gradient, state)
    yield updates


def layer(updates, name):
  return np.concatenate([np.ravel(updates[name][leaf]) for leaf in LAYERS[name]])


FRESH = {"curvature_update_period": 1, "inverse_update_period": 2}


@functools.cache
def direction_alone():
  tx = mbf_optax.scale_by_mbf(partition=PARTITION, **FRESH)
  return tx, list(run(tx, GRADIENTS))


@pytest.mark.parametrize("other", ["trace", "scale_by_adam"])
def test_direction_of_one_and_length_of_the_other(other):
  direction, directions = direction_alone()
  magnitude = getattr(optax, other)(0.9)
  grafted = mbf_optax.graft(direction, magnitude, PARTITION)
  for given, along, sized in zip(
    run(grafted, GRADIENTS),
    directions,
    run(magnitude, GRADIENTS),
    strict=True,
  ):
    for name in LAYERS:
      d, a, result = (layer(tree, name) for tree in (along, sized, given))
      expected = d / np.linalg.norm(d) * np.linalg.norm(a)
      np.testing.assert_allclose(np.linalg.norm(result), np.linalg.norm(a), rtol=1e-5)
      np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    for module, leaf in ELEMENTWISE:
      # Compiled in another program, Adam's own arithmetic rounds differently.
      np.testing.assert_allclose(
        given[module][leaf], sized[module][leaf], rtol=1e-6, atol=1e-7
      )


def test_where_directions_agree_the_update_is_the_others():
  """Much damping and no momentum: MBF's direction is the gradient's.

  The updates of ``optax.sgd`` descend, so those of the direction must, too.
  """
  direction = optax.chain(
    mbf_optax.scale_by_mbf(damping=1e12, momentum=0.0, partition=PARTITION, **FRESH),
    optax.scale(-1.0),
  )
  tx = mbf_optax.graft(direction, optax.sgd(0.5), PARTITION)
  for gradient, updates in zip(GRADIENTS, run(tx, GRADIENTS), strict=True):
    expected = jax.tree.map(lambda g: -0.5 * g, gradient)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


@functools.cache
def drop_in():
  """Adam's epsilon is the one number of ``mbf_adam`` that has a unit."""
  tx = mbf_optax.mbf_adam(0.1, eps=1e-16, partition=PARTITION, **FRESH)
  return tx, jax.jit(tx.update)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_the_gradients_does_not_matter(scale):
  tx, update = drop_in()
  scaled = [jax.tree.map(lambda g: scale * g, g) for g in GRADIENTS]
  for updates, expected in zip(
    run(tx, scaled, update), run(tx, GRADIENTS, update), strict=True
  ):
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


def test_scales_of_layers_do_not_matter_to_one_another():
  tx, update = drop_in()
  scaled = [
    {**g, "full": jax.tree.map(lambda g: 1e4 * g, g["full"])} for g in GRADIENTS
  ]
  for updates, expected in zip(
    run(tx, scaled, update), run(tx, GRADIENTS, update), strict=True
  ):
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("module", SHAPES)
@pytest.mark.parametrize("first", [True, False])
def test_extreme_gradients_of_a_layer(module, value, first):
  """Zero gives zero; neither gives NaN, nor touches the other layers."""
  tx, update = drop_in()
  gradients = list(GRADIENTS)
  for step in range(STEPS) if first else [2]:
    extreme = jax.tree.map(lambda g: jnp.full_like(g, value), GRADIENTS[0][module])
    gradients[step] = {**gradients[step], module: extreme}
  runs = zip(run(tx, gradients, update), run(tx, GRADIENTS, update), strict=True)
  for updates, clean in runs:
    chex.assert_tree_all_finite(updates)
    if first and value == 0:
      zeros = jax.tree.map(jnp.zeros_like, updates[module])
      chex.assert_trees_all_equal(updates[module], zeros)
    others = {name: leaf for name, leaf in updates.items() if name != module}
    chex.assert_trees_all_equal(others, {name: clean[name] for name in others})


def test_zero_direction_and_zero_length():
  """``0 / 0`` is zero, and so is a length of zero."""
  halves = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
  mute = optax.set_to_zero()
  for pair in ((mute, optax.identity()), (optax.identity(), mute), (mute, mute)):
    updates, _ = mbf_optax.graft(*pair).update(halves, pair_state(pair, halves))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, halves))


def pair_state(pair, params):
  return mbf_optax.graft(*pair).init(params)


def test_stacked_layers_are_scaled_one_by_one():
  """As unstacked ones, whatever the scales of their gradients."""
  shapes = {"kernel": (3, 2), "bias": (2,)}
  scales = jnp.asarray([1.0, 1e3])
  pairs = [[random_tree(10 * i + j, shapes) for j in range(2)] for i in range(3)]
  pairs = [
    [jax.tree.map(lambda g, s=s: s * g, g) for g, s in zip(pair, scales, strict=True)]
    for pair in pairs
  ]
  stacked = [
    {"stack": jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)} for pair in pairs
  ]
  apart = [{"first": pair[0], "second": pair[1]} for pair in pairs]
  tx = mbf_optax.mbf_adam(0.1, **FRESH)
  readings = mbf_optax.flax_partition()(stacked[0])
  assert [reading.layer.stack_axes for reading in readings] == [1]
  for together, alone in zip(run(tx, stacked), run(tx, apart), strict=True):
    for index, name in enumerate(("first", "second")):
      part = jax.tree.map(lambda leaf, index=index: leaf[index], together["stack"])
      chex.assert_trees_all_close(part, alone[name], rtol=1e-4, atol=1e-6)


def test_extra_arguments_reach_both_parts():
  heard = []

  def listener(name):
    def update(updates, state, params=None, *, word=None, **extra):
      del params, extra
      heard.append((name, word))
      return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)

  tx = mbf_optax.graft(listener("direction"), listener("magnitude"))
  tx.update(GRADIENTS[0], tx.init(GRADIENTS[0]), word="on")
  assert heard == [("direction", "on"), ("magnitude", "on")]


def test_norms_of_half_precision_are_wide():
  """A sum of squares that bfloat16 would lose, and float16 would overflow."""
  for dtype, value in ((jnp.bfloat16, 1.0), (jnp.float16, 6e4)):
    gradients = {"kernel": jnp.full((30, 30), value, dtype)}
    tx = mbf_optax.graft(optax.identity(), optax.identity())
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    chex.assert_trees_all_equal_dtypes(updates, gradients)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (updates, gradients))
    chex.assert_trees_all_close(*widened, rtol=1e-2)


def test_follows_the_oracle():
  """``mbf_adam`` with every kind of layer, against float64 NumPy."""
  oracle = grafted_reference.GraftReference(
    trees.oracle_layers(),
    reference.MbfReference(
      trees.oracle_layers(),
      damping=0.1,
      relative_damping=True,
      momentum=0.9,
      curvature_ema=0.8,
      curvature_update_period=2,
      inverse_update_period=4,
    ),
    grafted_reference.AdamReference(b1=0.9, b2=0.99),
  )
  rate = 0.01
  with jax.enable_x64(True):
    noise = trees.random_gradients(5, 12)
    start = trees.random_gradients(6, 1)[0]
    expected = reference.trajectory(
      start,
      lambda params, k: {name: 0.3 * params[name] + noise[k][name] for name in params},
      oracle,
      12,
      rate,
      weight_decay=0.1,
    )
    tx = mbf_optax.mbf_adam(
      rate,
      damping=0.1,
      b2=0.99,
      curvature_ema=0.8,
      curvature_update_period=2,
      inverse_update_period=4,
      weight_decay=0.1,
      partition=trees.PARTITION,
    )

    @jax.jit
    def step(params, state, noise):
      gradients = jax.tree.map(lambda p, n: 0.3 * p + n, params, noise)
      updates, state = tx.update(gradients, state, params)
      return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, trees.nested(start))
    state = jax.jit(tx.init)(params)
    for k in range(12):
      params, state = step(params, state, trees.nested(noise[k]))
      chex.assert_trees_all_close(
        params, trees.nested(expected[k]), rtol=1e-9, atol=1e-10
      )
