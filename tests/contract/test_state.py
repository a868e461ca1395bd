"""The state: dtypes, stability under control flow, buffers, names."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax
from tests.contract import common

each_transformation = common.each_transformation
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64"]
ESTIMATORS = {
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "full": {"kernel": (2, 2), "bias": (2,)},
  "norm": {"scale": (3,)},
  "other": {"kernel": (3, 2)},
  "shared": {"kernel": (3, 2), "bias": (2,)},
}


def partition_of(name):
  other = "two_sided" if name == "mbf_adam" else "low_rank"
  overrides = [("other", other), ("shared", "shared")]
  return mbf_optax.flax_partition("full", rank=2, overrides=overrides)


def wide(dtype):
  return {"float64": jnp.float64, "complex64": jnp.complex64}.get(dtype, jnp.float32)


@contextlib.contextmanager
def precision(dtype):
  """Wide numbers where asked for.

  ``optax.scale_by_adam`` keeps its moments in the parameters' dtype, and the weight
  decay and the learning rate of optax's own are wide scalars: no strict promotion.
  """
  with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
    yield


@each_transformation
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept(name, dtype):
  with precision(dtype):
    params = common.random_tree(0, ESTIMATORS, dtype)
    tx = common.make(name, partition=partition_of(name))
    state = jax.eval_shape(tx.init, params)

    def step(params, state):
      updates, new = tx.update(params, state, params)
      chosen = jax.lax.cond(optax.tree.norm(updates) > 1, lambda: new, lambda: state)
      return updates, new, chosen

    updates, new, chosen = jax.eval_shape(step, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    chex.assert_trees_all_equal_structs(new, state)
    for leaf in jax.tree.leaves((state, updates, new, chosen)):
      assert not leaf.weak_type
    inner = common.our_state(state)
    for leaf in jax.tree.leaves(common.moments(inner)):
      assert leaf.dtype == wide(dtype)
    real = jnp.float64 if dtype == "float64" else jnp.float32
    for leaf in jax.tree.leaves(inner.curvature):
      assert leaf.dtype in (real, jnp.int32)  # the slot of a low-rank history


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_scan_and_finite_updates(dtype):
  """The strict rules hold for MBF itself."""
  params = common.random_tree(0, ESTIMATORS, dtype)
  del params["conv"], params["full"]  # shorter to compile
  tx = common.make("scale_by_mbf", partition=partition_of("scale_by_mbf"))

  @jax.jit
  def train(params):
    def step(state, _):
      updates, state = tx.update(params, state)
      return state, updates

    return jax.lax.scan(step, tx.init(params), length=3)

  state, updates = train(params)
  chex.assert_tree_all_finite((state, updates))
  chex.assert_trees_all_equal_dtypes(updates, params)
  if dtype == "bfloat16":  # as from the same gradients in float32, rounded at the end
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected_state, expected = train(widened)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-6)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected)
    chex.assert_trees_all_close(updates, rounded, rtol=1e-2)


def test_mixed_dtypes():
  shapes = {"kernel": (2, 2), "bias": (2,)}
  params = {
    "a": common.random_tree(0, shapes, jnp.bfloat16),
    "b": common.random_tree(1, shapes, jnp.float16),
    "c": {
      "kernel": common.random_tree(2, (2, 2), jnp.bfloat16),
      "bias": common.random_tree(3, (2,), jnp.float32),
    },
  }
  tx = mbf_optax.scale_by_mbf()
  state = tx.init(params)
  updates, new = jax.jit(tx.update)(params, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  chex.assert_tree_all_finite((updates, new))


@each_transformation
def test_gradients_of_another_dtype_keep_theirs(name):
  """Gradients in bfloat16 beside parameters in float32."""
  tx = common.make(name, **({"weight_decay": 0.0} if name.startswith("mbf") else {}))
  state = tx.init(common.PARAMS)
  gradients = common.random_tree(1, dtype=jnp.bfloat16)
  with jax.numpy_dtype_promotion("standard"):  # of Adam's moments
    _, new = jax.eval_shape(tx.update, gradients, state)
  kept, given = map(common.our_state, (new, state))
  chex.assert_trees_all_equal_shapes_and_dtypes(kept, given)
  ours = mbf_optax.scale_by_mbf()
  updates, _ = jax.eval_shape(ours.update, gradients, ours.init(common.PARAMS))
  chex.assert_trees_all_equal_dtypes(updates, gradients)


def pointers(tree):
  return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size]


@each_transformation
def test_donation(name):
  """Every buffer is donated, and none of them twice."""
  kernel = {"kernel": (3, 2)}
  shapes = {**common.SHAPES, "other": kernel, "shared": kernel}
  tx = common.make(name, partition=partition_of(name))
  gradients = common.random_tree(1, shapes)

  def step(params, state):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  params = common.random_tree(0, shapes)
  state = tx.init(params)
  addresses = pointers((params, state))
  assert len(set(addresses)) == len(addresses)
  jitted = jax.jit(step, donate_argnums=(0, 1))
  for _ in range(4):
    given = params, state
    params, state = jitted(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    addresses = pointers((params, state))
    assert len(set(addresses)) == len(addresses)
  chex.assert_tree_all_finite((params, state))


def test_jitted_init_aliases_nothing():
  tx = common.make("mbf_adam")
  params = common.random_tree(0)
  state = jax.jit(tx.init)(params)
  addresses = pointers((params, state))
  assert len(set(addresses)) == len(addresses)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


def test_warm_started_state_is_donated():
  tx = common.make("scale_by_mbf")
  params = common.random_tree(0)
  state = mbf_optax.warm_start(tx, tx.init(params), params, common.GRADIENTS[:2])
  addresses = pointers((params, state))
  assert len(set(addresses)) == len(addresses)
  update = jax.jit(tx.update, donate_argnums=1)
  _, state = update(common.GRADIENTS[0], state)
  chex.assert_tree_all_finite(state)


@each_transformation
def test_tree_get_and_set_reach_the_fields(name):
  state = optax.chain(optax.clip(1.0), common.make(name)).init(common.PARAMS)
  inner = common.our_state(state)
  for field in set(inner._fields) - {"count", "adam"}:
    value = optax.tree.get(state, field)
    chex.assert_trees_all_equal(value, getattr(inner, field))
  counts = optax.tree.get_all_with_path(state, "count")
  assert len(counts) == 1

  gradients = common.GRADIENTS[0]
  moment = "mu" if name == "mbf_adam" else "momentum"
  changed = optax.tree.set(
    state, **{moment: gradients}, bias_correction=jnp.asarray(0.5)
  )
  assert optax.tree.get(changed, "bias_correction") == 0.5
  chex.assert_trees_all_equal(common.moments(common.our_state(changed))[0], gradients)
  chex.assert_trees_all_equal_structs(changed, state)
  chex.assert_trees_all_equal(common.our_state(changed).curvature, inner.curvature)


def test_state_survives_flattening():
  tx = common.make("mbf_adam")
  state = tx.init(common.PARAMS)
  leaves, structure = jax.tree.flatten(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  chex.assert_trees_all_equal(jax.tree.unflatten(structure, leaves), state)
