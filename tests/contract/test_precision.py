"""Narrow and wide numbers, in training and through every wrapper."""

import functools

import chex
import flax.training.dynamic_scale
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests.contract import common

pytestmark = pytest.mark.promotes
each_name = pytest.mark.parametrize("name", ["mbf", "mbf_adam"])
SHAPES = {"a": common.SHAPES["dense"], "b": common.SHAPES["dense"]}
MASK = {"a": True, "b": False}

INPUTS = np.random.default_rng(0).normal(size=(32, 4))
LABELS = INPUTS[:, :3].argmax(-1)
NETWORK = {
  "full": {"kernel": (4, 4), "bias": (4,)},
  "shared": {"kernel": (4, 4), "bias": (4,)},
  "other": {"kernel": (4, 3), "bias": (3,)},
  "norm": {"scale": (3,)},
}
OTHER = {"mbf": "low_rank", "mbf_adam": "two_sided"}


def partition_of(name):
  overrides = [("shared", "shared"), ("other", OTHER[name])]
  return mbf_optax.flax_partition("full", rank=3, overrides=overrides)


WRAPPERS = {
  "chain": lambda make, **_: optax.chain(optax.clip_by_global_norm(1.0), make()),
  "masked": lambda make, **_: optax.masked(make(), MASK),
  "partition": lambda make, **_: optax.partition(
    {"ours": make(), "theirs": optax.sgd(0.5)}, {"a": "ours", "b": "theirs"}
  ),
  "multi_steps": lambda make, **_: optax.MultiSteps(make(), 2),
  # Left to itself it rounds the numbers to the gradients' dtype: 0.999 to 1.
  "inject_hyperparams": lambda make, name: optax.inject_hyperparams(
    common.FACTORIES[name], hyperparam_dtype=jnp.float32
  )(**common.HYPERPARAMETERS[name]),
  "apply_if_finite": lambda make, **_: optax.apply_if_finite(make(), 3),
  "lookahead": lambda make, **_: optax.lookahead(make(), 2, 0.5),
  "schedule_free": lambda make, **_: optax.contrib.schedule_free(make(), 0.1),
  "freeze": lambda make, **_: optax.transforms.selective_transform(
    make(), freeze_mask=MASK
  ),
}


@each_name
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_are_kept_through_wrappers(name, wrapper, dtype):
  with jax.enable_x64(dtype == "float64"):
    params = gradients = common.random_tree(0, SHAPES, dtype)
    tx = WRAPPERS[wrapper](lambda: common.make(name), name=name)
    if wrapper == "lookahead":
      params = optax.LookaheadParams.init_synced(params)
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, gradients, state, params)
    applied = jax.eval_shape(optax.apply_updates, params, updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(applied, params)
    chex.assert_trees_all_equal_structs(new, state)
    ours, kept = map(common.our_state, (state, new))
    chex.assert_trees_all_equal_shapes_and_dtypes(kept, ours)
    wide = {"float64" if dtype == "float64" else "float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(common.moments(ours))} == wide
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours.curvature)} == wide


@each_name
@pytest.mark.parametrize(
  "dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"]
)
@pytest.mark.parametrize("scale", [1e-4, pytest.param(1.0, marks=pytest.mark.slow)])
def test_narrow_gradients_move_as_wide_ones(name, dtype, scale):
  """Also those whose square float16 does not hold."""
  tx = common.make(name, weight_decay=0.0, learning_rate=0.1)
  update = jax.jit(tx.update)
  gradients = [
    jax.tree.map(lambda g: (scale * g).astype(dtype), g) for g in common.GRADIENTS
  ]
  params = jax.tree.map(lambda p: p.astype(dtype), common.PARAMS)

  def widened(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

  given = common.run(tx, update, gradients, params)
  wide = common.run(tx, update, [widened(g) for g in gradients], widened(params))
  for (updates, _), (expected, _) in zip(given, wide, strict=True):
    chex.assert_trees_all_equal_dtypes(updates, params)
    chex.assert_trees_all_close(widened(updates), expected, rtol=1e-2, atol=1e-6)


@each_name
def test_gradients_of_any_dtype_keep_the_state(name):
  """Narrower and wider than the parameters, whatever the estimator."""
  with jax.enable_x64(True):
    for params, gradients in [("float64", "float32"), ("float32", "float64")]:
      params = common.random_tree(0, NETWORK, params)
      gradients = common.random_tree(1, NETWORK, gradients)
      tx = common.make(name, partition=partition_of(name), weight_decay=0.0)
      state = jax.eval_shape(tx.init, params)
      _, new = jax.eval_shape(tx.update, gradients, state, params)
      ours, kept = (optax.tree.get(s, "curvature") for s in (state, new))
      chex.assert_trees_all_equal_shapes_and_dtypes(ours, kept)


def loss_fn(params, x):
  for name in ("full", "shared"):
    x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
  x = x @ params["other"]["kernel"] + params["other"]["bias"]
  x = x * params["norm"]["scale"]
  logits = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


@functools.cache
@functools.cache
def train(name, dtype, steps=12):
  """Losses, and whether each step was taken, with a loss scale in float16."""
  tx = common.make(name, partition=partition_of(name), learning_rate=0.02)
  scale = flax.training.dynamic_scale.DynamicScale(
    scale=2.0**20 if dtype == "float16" else 1.0, growth_interval=4
  )

  @jax.jit
  def step(params, state, scale):
    scale, finite, loss, gradients = scale.value_and_grad(loss_fn)(
      params, jnp.asarray(INPUTS, dtype)
    )
    if dtype == "float16":
      gradients = jax.tree.map(lambda g: g.astype(dtype), gradients)
    updates, new = tx.update(gradients, state, params)
    moved = optax.apply_updates(params, updates)
    params, state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), (moved, new), (params, state)
    )
    return params, state, scale, loss, finite

  params = common.random_tree(1, NETWORK, dtype)
  state, losses, taken = tx.init(params), [], []
  for _ in range(steps):
    params, state, scale, loss, finite = step(params, state, scale)
    losses.append(float(loss))
    taken.append(bool(finite))
  chex.assert_tree_all_finite((params, state))
  return np.array(losses), np.array(taken)


@each_name
@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [
    pytest.param("bfloat16", 0.05, marks=pytest.mark.slow),
    ("float16", 0.02),
    pytest.param("float64", 1e-4, marks=pytest.mark.slow),
  ],
)
def test_training_follows_float32(name, dtype, tolerance):
  """Up to the rounding of the parameters; a step that overflows is skipped."""
  expected, _ = train(name, "float32")
  with jax.enable_x64(dtype == "float64"):
    losses, taken = train(name, dtype)
  assert expected[-1] < 0.9 * expected[0]
  assert taken.all() == (dtype != "float16")
  assert taken.sum() >= 6
  losses = losses[taken]
  np.testing.assert_allclose(losses, expected[: len(losses)], rtol=tolerance)
