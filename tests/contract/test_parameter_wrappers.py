"""Inside the wrappers that keep parameters of their own, or hold some of them back."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract import common

pytestmark = pytest.mark.promotes
each_transformation = common.each_transformation
OURS = [name for name in common.NAMES if name.startswith("mbf")]


def close(actual, expected):
  chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-6)


def interpolated(weight, a, b):
  return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, a, b)


@each_transformation
def test_lookahead(name):
  """Every second step the slow parameters go half way to the fast ones."""
  plain, update = common.compiled(name)
  tx = optax.lookahead(plain, sync_period=2, slow_step_size=0.5)
  wrapped = jax.jit(tx.update)
  params = optax.LookaheadParams.init_synced(common.PARAMS)
  state, plain_state = tx.init(params), plain.init(common.PARAMS)
  fast = slow = common.PARAMS
  for count, gradients in enumerate(common.GRADIENTS[:4]):
    updates, state = wrapped(gradients, state, params)
    params = optax.apply_updates(params, updates)
    updates, plain_state = update(gradients, plain_state, fast)
    fast = optax.apply_updates(fast, updates)
    if count % 2 == 1:
      fast = slow = interpolated(0.5, slow, fast)
    close(params, optax.LookaheadParams(fast, slow))
    close(state.fast_state, plain_state)


@pytest.mark.parametrize("name", OURS)
def test_schedule_free(name):
  """``z`` takes the steps, ``x`` is their mean, the gradient belongs between them."""
  rate = common.HYPERPARAMETERS[name]["learning_rate"]
  base = common.make(name, weight_decay=0.0)
  tx = optax.contrib.schedule_free(base, learning_rate=rate, b1=0.9)
  wrapped, update = jax.jit(tx.update), jax.jit(base.update)
  params = x = z = common.PARAMS
  state, base_state = tx.init(params), base.init(params)
  for count, gradients in enumerate(common.GRADIENTS[:4]):
    updates, state = wrapped(gradients, state, params)
    params = optax.apply_updates(params, updates)
    updates, base_state = update(gradients, base_state, params)
    z = optax.apply_updates(z, updates)
    x = interpolated(1 / (count + 1), x, z)
    close(params, interpolated(0.9, z, x))
    close(optax.contrib.schedule_free_eval_params(state, params), x)
    close(state.base_optimizer_state, base_state)


KEPT_OUT = {
  "partition": lambda tx: optax.partition(
    {"trained": tx, "kept": optax.set_to_zero()}, {"a": "trained", "b": "kept"}
  ),
  "freeze": lambda tx: optax.chain(
    tx, optax.transforms.freeze({"a": False, "b": True})
  ),
}


@pytest.mark.parametrize("way", KEPT_OUT)
@pytest.mark.parametrize("name", OURS)
def test_parameters_kept_out_stay_where_they_are(name, way):
  """In the ways that messages and documentation name; ``optax.masked`` is none."""
  params = common.random_tree(20, {"a": (2,), "b": (2,)})
  tx = KEPT_OUT[way](common.make(name))
  updates, _ = tx.update(params, tx.init(params), params)
  moved = optax.apply_updates(params, updates)
  chex.assert_trees_all_equal(moved["b"], params["b"])
  assert jnp.all(moved["a"] != params["a"])


@each_transformation
def test_freeze(name):
  """Frozen parameters stay where they are, and take no memory if never shown."""
  shapes = {"a": common.SHAPES["dense"], "b": common.SHAPES["dense"]}
  params = common.random_tree(20, shapes)
  gradients = common.random_tree(21, shapes)
  plain, mask = common.make(name), {"a": False, "b": True}
  expected, _ = jax.jit(plain.update)(gradients, plain.init(params), params)
  held = optax.chain(plain, optax.transforms.freeze(mask))
  hidden = optax.transforms.selective_transform(plain, freeze_mask=mask)
  for tx in (held, hidden):
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(gradients, state, params)
    close(updates["a"], expected["a"])
    chex.assert_trees_all_equal(updates["b"], jax.tree.map(jnp.zeros_like, params["b"]))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  ((_, layers),) = optax.tree.get_all_with_path(hidden.init(params), "curvature")
  assert list(layers) == ["a/kernel"]
