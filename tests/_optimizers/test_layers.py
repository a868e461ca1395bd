"""Layers together: what is stored, refreshed and rounded, whatever their estimators."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import mbf_optax
from mbf_optax._optimizers.layers import Layers, corrected_by, every, when
from mbf_optax._partition.layer import Layer, read

SHAPES = {
  "conv": {"kernel": (3, 3, 2, 3), "bias": (3,)},
  "wide": {"kernel": (30, 2), "bias": (2,)},
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
    if not isinstance(layer, mbf_optax.BlockState):
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


def test_powers_of_mbf_adam_are_rounded_too():
  """On both sides; all is computed in float32."""
  params = {"Dense_0": {"kernel": jnp.ones((4, 6))}}
  runs = []
  for dtype in (None, "bfloat16"):
    tx = mbf_optax.scale_by_mbf_adam(
      exponent=1.0, inverse_update_period=1, inverse_dtype=dtype
    )
    update, state = jax.jit(tx.update), tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
      gradient = {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
      }
      updates, state = update(gradient, state)
    runs.append((updates["Dense_0"]["kernel"], state.curvature["Dense_0/kernel"]))
  (exact, state), (rounded, kept) = runs
  for side, given in zip(state, kept, strict=True):
    assert given.inverse.dtype == "bfloat16"
    wide = given.inverse.astype(jnp.float32)
    chex.assert_trees_all_close(wide, side.inverse, rtol=2**-7, atol=1e-4)
    assert not np.array_equal(wide, np.broadcast_to(np.eye(len(wide[0])), wide.shape))
  assert rounded.dtype == jnp.float32
  np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())


LAYERS = Layers.of(
  [
    read("a", (3, 2), Layer((0,))),
    read("b", (4, 2), Layer((0,), "low_rank", rank=2)),
    read("c", (5,), Layer((), "rms")),
  ]
)


def test_layers_are_told_apart_by_what_they_can_do():
  def names(layers):
    return [estimator.reading.path for estimator in layers.estimators]

  assert names(LAYERS.blocks) == ["a", "b"]
  assert names(LAYERS.elementwise) == ["c"]
  assert names(LAYERS.where(lambda e: e.refreshes_with_statistics)) == ["b"]
  states = {"a": 1, "b": 2, "c": 3}
  assert LAYERS.blocks.of_these(states) == {"a": 1, "b": 2}


def test_every_and_when():
  def add(value):
    return value + 1

  counts = [int(every(3, jnp.int32(k), add, jnp.int32(0))) for k in range(7)]
  assert counts == [1, 0, 0, 1, 0, 0, 1]
  assert when(jnp.array(True), add, 1) == 2
  assert when(jnp.array(False), add, 1) == 1


def test_bias_corrections_are_those_of_a_moving_average_of_ones():
  c = jnp.zeros(())
  for steps in range(1, 4):
    c = corrected_by(0.7, c)
    np.testing.assert_allclose(c, 1 - 0.7**steps, rtol=1e-6)
