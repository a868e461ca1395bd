"""Parameter trees of every form: any rank, lone arrays, sequences, holes, no leaves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests.contract import common

each_transformation = common.each_transformation
RANKS = [(), (3,), (3, 2), (3, 1, 2), (1, 3, 2, 1), (3, 1, 1, 1, 2)]


def check(name, params, gradients, steps=2):
  """Two steps keep structure, shapes, dtypes and finiteness."""
  tx = common.make(name)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(steps):
    updates, new = update(gradients, state, params)
    chex.assert_trees_all_equal_structs(updates, gradients)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
    chex.assert_trees_all_equal_structs(new, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    chex.assert_tree_all_finite((updates, new))
    state = new
  chex.assert_trees_all_equal_shapes_and_dtypes(
    optax.apply_updates(params, updates), params
  )
  return updates


@each_transformation
def test_mixture(name):
  """All ranks, tuples and lists, zero-size leaves, None and MaskedNode in one tree."""

  def tree(seed):
    named = {f"kernel_{len(s)}": common.random_tree(seed, s) for s in RANKS}
    kernels = {f"m{len(s)}": {"kernel": common.random_tree(seed, s)} for s in RANKS}
    return {
      "lone": common.random_tree(seed, ()),
      "modules": kernels,
      "names": named,
      "sequence": (common.random_tree(seed, (2,)), [common.random_tree(seed, (2, 2))]),
      "nothing": None,
      "masked": optax.MaskedNode(),
      "empty": [{}, ()],
      "zero_size": {
        "kernel": jnp.zeros((0, 2)),
        "bias": jnp.zeros((2,)),
        "scale": jnp.zeros((0,)),
      },
      "no_outputs": {"kernel": jnp.zeros((2, 0)), "bias": jnp.zeros((0,))},
      "two_sided": {
        "kernel": common.random_tree(seed, (3, 5)),
        "bias": common.random_tree(seed, (5,)),
      },
      "no_channels": {"kernel": jnp.zeros((3, 3, 0, 2)), "bias": jnp.zeros((2,))},
    }

  updates = check(name, tree(0), tree(1))
  assert updates["nothing"] is None
  assert updates["masked"] == optax.MaskedNode()


@each_transformation
@pytest.mark.parametrize("shape", RANKS, ids=str)
def test_lone_arrays(name, shape):
  """By shapes alone: the readings of lone arrays are those of unnamed leaves."""
  params = common.random_tree(0, shape)
  tx = common.make(name)
  state = jax.eval_shape(tx.init, params)
  updates, new = jax.eval_shape(tx.update, params, state, params)
  assert (updates.shape, updates.dtype) == (params.shape, params.dtype)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@pytest.mark.parametrize("make_tree", [lambda x: x, lambda x: (x, x), lambda x: [x, x]])
def test_unnamed_leaves_are_read_as_adam_would(make_tree):
  """``g / |g|`` at the first step from a zero start without momentum."""
  leaf = jnp.asarray([[3.0, -2.0]])
  tx = mbf_optax.scale_by_mbf(momentum=0.0)
  params = make_tree(leaf)
  updates, _ = jax.jit(tx.update)(params, tx.init(params))
  expected = make_tree(jnp.asarray([[1.0, -1.0]]))
  chex.assert_trees_all_close(updates, expected, rtol=1e-5)


@each_transformation
@pytest.mark.parametrize("empty", [{}, (), [], None, {"a": {}, "b": ()}], ids=repr)
def test_empty_trees(name, empty):
  tx = common.make(name, **({"weight_decay": 0.0} if name.startswith("mbf") else {}))
  state = tx.init(empty)
  updates, new = tx.update(empty, state, empty)
  assert updates == empty
  chex.assert_trees_all_equal_structs(new, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  if name == "scale_by_mbf":
    assert (state.count, new.count) == (0, 1)


@each_transformation
def test_only_zero_size_leaves(name):
  params = {"kernel": jnp.zeros((0, 2)), "scale": jnp.zeros((0,))}
  check(name, params, params)


@each_transformation
def test_only_holes(name):
  params = {"a": None, "b": optax.MaskedNode()}
  tx = common.make(name)
  updates, _ = tx.update(params, tx.init(params), params)
  assert updates == params


def test_numpy_parameters():
  """NumPy leaves become jax arrays in the state and in the updates."""
  params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
  tx = mbf_optax.scale_by_mbf()
  state = tx.init(params)
  chex.assert_tree_has_only_ndarrays(state)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  updates, _ = jax.jit(tx.update)(params, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_init_from_shapes():
  """``jax.eval_shape`` of ``init`` tells the state without memory."""
  tx = common.make("mbf_adam")
  expected = tx.init(common.PARAMS)
  shapes = jax.eval_shape(lambda: common.PARAMS)
  chex.assert_trees_all_equal_shapes_and_dtypes(
    jax.eval_shape(tx.init, shapes), expected
  )
