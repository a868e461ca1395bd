"""Inverses that are kept in bfloat16: their memory, and what the rounding does."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mbf_optax.full import BlockState

import mbf_optax

SHAPES = {
  "conv": {"kernel": (3, 3, 2, 3), "bias": (3,)},
  "wide": {"kernel": (70, 2), "bias": (2,)},
  "shared": {"kernel": (5, 4)},
  "low_rank": {"kernel": (8, 3)},
  "norm": {"scale": (4,)},
}
PARTITION = mbf_optax.flax_partition(
  dense="full",
  rank=3,
  overrides=[("shared", "shared"), ("low_rank", "low_rank")],
)


def transformation(**options):
  return mbf_optax.scale_by_mbf(damping=0.3, partition=PARTITION, **options)


def gradients(count):
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(
      lambda shape: jnp.asarray(1 + rng.normal(size=shape), jnp.float32),
      SHAPES,
      is_leaf=lambda node: isinstance(node, tuple),
    )
    for _ in range(count)
  ]


@functools.cache
def run(inverse_dtype):
  """Direction and state after four steps."""
  tx = transformation(inverse_dtype=inverse_dtype)
  first, *_ = given = gradients(4)
  state = tx.init(first)
  update = jax.jit(tx.update)
  for gradient in given:
    direction, state = update(gradient, state)
  return direction, state


def test_floats_a_weight():
  """Momentum, statistics and half an inverse: 1 + 45 / 9 + 45 / 18 floats."""
  params = {"kernel": jnp.ones((3, 3, 16, 16))}
  tx = mbf_optax.scale_by_mbf(inverse_dtype="bfloat16")
  state = tx.init(params)
  held = [state.momentum, state.curvature]
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
  assert size == 8.5 * 4 * params["kernel"].size


def test_inverses_are_those_of_float32_rounded():
  _, exact = run(None)
  _, rounded = run("bfloat16")
  for path, layer in exact.curvature.items():
    kept = rounded.curvature[path]
    if not isinstance(layer, BlockState):
      chex.assert_trees_all_equal(kept, layer)
      continue
    assert kept.inverse.dtype == "bfloat16"
    # A product that is reordered may fall on the other side of a rounding.
    chex.assert_trees_all_close(
      kept.inverse.astype(jnp.float32), layer.inverse, rtol=2**-8, atol=1e-6
    )
    without = jnp.zeros(())
    chex.assert_trees_all_equal(
      kept._replace(inverse=without), layer._replace(inverse=without)
    )


def test_directions_move_by_the_rounding_alone():
  exact, state = run(None)
  rounded, _ = run("bfloat16")
  momentum = jax.tree.leaves(state.momentum)
  for a, b, m in zip(*map(jax.tree.leaves, (exact, rounded)), momentum, strict=True):
    assert a.dtype == b.dtype == jnp.float32
    # No inverse is larger than 1 / damping.
    bound = 2**-8 / 0.3 * np.linalg.norm(np.ravel(m))
    assert np.linalg.norm(np.ravel(a - b)) < 4 * bound


def test_low_rank_directions_stay_downhill():
  """What is kept there is no inverse: its rounding would be divided by the damping."""
  tx = mbf_optax.scale_by_mbf(
    0.1,
    relative_damping=True,
    inverse_dtype="bfloat16",
    partition=mbf_optax.flax_partition("low_rank"),
  )
  gradient = {"kernel": jax.random.normal(jax.random.key(0), (2000, 64))}
  direction, _ = tx.update(gradient, tx.init(gradient))
  assert jnp.all(jnp.sum(direction["kernel"] * gradient["kernel"], axis=0) > 0)


def test_scan_keeps_dtypes_and_warm_start_too():
  tx = transformation(inverse_dtype="bfloat16")
  stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients(5))
  first = gradients(1)[0]
  state = mbf_optax.warm_start(tx, tx.init(first), first, gradients(2))
  final, _ = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], state, stacked)
  chex.assert_trees_all_equal_shapes_and_dtypes(final, state)
  chex.assert_tree_all_finite(final)


@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_aliases_pass_it_on_and_refuse_integers(factory):
  params = {"Dense_0": {"kernel": jnp.ones((3, 2))}}
  state = factory(0.1, inverse_dtype="bfloat16").init(params)
  assert jnp.dtype("bfloat16") in {leaf.dtype for leaf in jax.tree.leaves(state)}
  with pytest.raises(ValueError, match="inverse_dtype is int32; use a floating dtype"):
    factory(0.1, inverse_dtype="int32")
