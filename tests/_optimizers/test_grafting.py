"""Grafting: whose direction, and whose length."""

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
  "full", rank=2, overrides=[("low_rank", "low_rank"), ("shared", "shared")]
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


def test_zero_direction_and_zero_length():
  """``0 / 0`` is zero, and so is a length of zero."""
  halves = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
  mute = optax.set_to_zero()
  for pair in ((mute, optax.identity()), (optax.identity(), mute), (mute, mute)):
    updates, _ = mbf_optax.graft(*pair).update(halves, pair_state(pair, halves))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, halves))


def pair_state(pair, params):
  return mbf_optax.graft(*pair).init(params)


@pytest.mark.parametrize("lengths", ["layer", "block"])
def test_stacked_layers_are_scaled_one_by_one(lengths):
  """And every block by itself, where blocks are asked for."""
  rng = np.random.default_rng(0)
  gradients = {"kernel": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)}
  layer = mbf_optax.Layer((1,), "shared", stack_axes=(0,))
  partition = mbf_optax.flax_partition(overrides=[("kernel", layer)])
  uneven = optax.stateless(
    lambda updates, _: jax.tree.map(lambda g: 7 * g * jnp.abs(g), updates)
  )
  tx = mbf_optax.graft(uneven, optax.scale(0.1), partition, lengths=lengths)
  updates, _ = tx.update(gradients, tx.init(gradients))
  g = np.asarray(gradients["kernel"])
  d, axes = g * np.abs(g), (1,) if lengths == "block" else (1, 2)

  def norm(x):
    return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))

  np.testing.assert_allclose(updates["kernel"], 0.1 * d * norm(g) / norm(d), rtol=1e-5)


def test_numbers_of_python_are_parameters():
  tx = mbf_optax.graft(optax.identity(), optax.identity())
  updates, _ = tx.update({"scale": 2.0}, tx.init({"scale": 1.0}))
  assert float(updates["scale"]) == 2


@pytest.mark.mistyped
def test_unknown_lengths():
  with pytest.raises(ValueError, match="lengths is 'neuron'; use one of 'layer', 'blo"):
    mbf_optax.graft(optax.identity(), optax.identity(), lengths="neuron")


@pytest.mark.parametrize("part", ["direction", "magnitude"])
def test_parameters_reach_both_parts(part):
  """``optax.add_decayed_weights`` refuses an update without them."""
  parts = {"direction": optax.identity(), "magnitude": optax.identity()}
  parts[part] = optax.add_decayed_weights(0.1)
  tx = mbf_optax.graft(**parts)
  params = {"kernel": jnp.full((2, 2), 2.0)}
  gradients = {"kernel": jnp.ones((2, 2))}
  updates, _ = tx.update(gradients, tx.init(params), params)
  expected = 1.2 if part == "magnitude" else 1.0
  np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


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


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_neither_over_nor_underflow(scale):
  """Of either transformation."""
  gradients = {"kernel": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}
  one, other = optax.identity(), optax.scale(scale)
  for tx, factor in (
    (mbf_optax.graft(other, one), 1),
    (mbf_optax.graft(one, other), scale),
  ):
    updates, _ = tx.update(gradients, tx.init(gradients))
    expected = factor * np.asarray(gradients["kernel"])
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


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
  """MBF's direction at Adam's length with every kind of layer, in float64."""
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
    direction = mbf_optax.scale_by_mbf(
      0.1,
      relative_damping=True,
      curvature_ema=0.8,
      curvature_update_period=2,
      inverse_update_period=4,
      partition=trees.PARTITION,
    )
    tx = optax.chain(
      mbf_optax.graft(direction, optax.scale_by_adam(0.9, 0.99), trees.PARTITION),
      optax.add_decayed_weights(0.1),
      optax.scale_by_learning_rate(rate),
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
