"""Layers of one shape computed as one are what they are one by one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._estimators.table import estimator_of
from mbf_optax._optimizers import alike
from mbf_optax._partition.choice import for_mbf_adam

SHAPES = {
  "first": {"kernel": (6, 7), "bias": (7,)},
  "conv": {"kernel": (3, 3, 4, 6)},
  "second": {"kernel": (6, 7), "bias": (7,)},
  "bare": {"kernel": (6, 7)},
  "other": {"kernel": (5, 7), "bias": (7,)},
  "deeper conv": {"kernel": (3, 3, 4, 6)},
  "third": {"kernel": (6, 7), "bias": (7,)},
  "norm": {"scale": (4,)},
  "fourth": {"kernel": (6, 7)},
  "Conv_1x1": {"kernel": (1, 1, 4, 6)},
}
PARTITIONS = {
  "mbf": mbf_optax.flax_partition(),
  "mbf_adam": mbf_optax.flax_partition(),
  "mbf_adam by kernel": mbf_optax.flax_partition(overrides=[("conv", "conv")]),
}


def tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    SHAPES,
    is_leaf=is_shape,
  )


def is_shape(node):
  return isinstance(node, tuple)


def estimators(name="mbf_adam"):
  readings = PARTITIONS[name](tree(0))
  chosen = [choice for r in readings for choice in for_mbf_adam(r)]
  return [estimator_of(reading) for reading in chosen]


def stacks(of):
  return alike._stacks(of, [(jnp.ones(e.reading.shape),) for e in of])


def names(of, found):
  return {tuple(of[i].reading.path.split("/")[0] for i in members) for members in found}


def test_layers_that_differ_in_their_paths_alone_are_stacked():
  of = estimators()
  assert names(of, stacks(of)) == {
    ("first", "second", "third"),
    ("bare", "fourth"),
    ("conv", "deeper conv"),
    ("other",),
    ("norm",),
    ("Conv_1x1",),
  }


def test_layers_of_different_dtypes_are_not_stacked():
  of = estimators()
  own = [(jnp.ones(e.reading.shape, dtype_of(e)),) for e in of]
  assert {("first", "third"), ("second",)} <= names(of, alike._stacks(of, own))


def dtype_of(estimator):
  is_half = estimator.reading.path.startswith("second")
  return jnp.bfloat16 if is_half else jnp.float32


def test_what_only_some_devices_of_a_manual_mesh_share_is_not_stacked():
  """Types say so."""
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((1,), ("devices",), axis_types=auto)
  along = jax.sharding.PartitionSpec("devices")
  of = [e for e in estimators() if e.reading.path.split("/")[0] in ("bare", "fourth")]

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(along, jax.sharding.PartitionSpec()),
    out_specs=along,
  )
  def each(divided, whole):
    first, second = alike.of_each(lambda _, x: 2 * x, of, [divided, whole])
    return first + second

  x = jnp.ones(of[0].reading.shape)
  np.testing.assert_array_equal(jax.jit(each)(x, x), 4 * x)


def test_kernels_with_matrices_of_their_own_are_not_copied():
  of = estimators("mbf_adam by kernel")
  assert {("conv",), ("deeper conv",)} <= names(of, stacks(of))


def test_a_stack_holds_no_more_than_so_many_parameters(monkeypatch):
  of = estimators()
  monkeypatch.setattr(alike, "MOST", 2 * (6 * 7 + 7))
  assert {("first",), ("second", "third"), ("conv",)} <= names(of, stacks(of))


def test_results_come_in_the_order_of_the_layers():
  of = estimators()
  numbers = [jnp.full(e.reading.shape, i, jnp.float32) for i, e in enumerate(of)]
  one = alike._stacked(lambda _, x: x.sum(), of, stacks(of), numbers)
  np.testing.assert_array_equal(one, [x.sum() for x in numbers])


def stacked(function, of, *arguments):
  own = list(zip(*arguments, strict=True))
  return alike._stacked(function, of, alike._stacks(of, own), *arguments)


def trajectory(name):
  scale_by = mbf_optax.scale_by_mbf if name == "mbf" else mbf_optax.scale_by_mbf_adam
  tx = scale_by(inverse_update_period=2, partition=PARTITIONS[name])
  state, found = tx.init(tree(0)), []
  for seed in range(1, 5):
    updates, state = jax.jit(tx.update)(tree(seed), state, tree(0))
    found.append(updates)
  return found, state


@pytest.mark.parametrize("name", PARTITIONS)
def test_an_optimizer_does_the_same_with_stacks(monkeypatch, name):
  expected = trajectory(name)
  monkeypatch.setattr(alike, "_apart", stacked)
  chex.assert_trees_all_close(trajectory(name), expected, rtol=2e-5, atol=1e-6)


def products(count, platform):
  """Products in the program of an update of so many equal layers."""
  layer = {"kernel": (40, 6), "bias": (6,)}
  params = {
    f"Dense_{i}": jax.tree.map(jnp.zeros, layer, is_leaf=is_shape) for i in range(count)
  }
  tx = mbf_optax.scale_by_mbf_adam()
  state = jax.eval_shape(tx.init, params)
  lower = jax.jit(tx.update).trace(params, state, params).lower
  return lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")


def test_a_layer_more_adds_no_product_on_cuda():
  assert products(6, "cuda") == products(2, "cuda") < products(2, "cpu")
  assert products(6, "cpu") - products(2, "cpu") == 4 * 5  # that of the bias, too


def test_several_devices_compute_every_layer_by_itself(monkeypatch):
  """Their arrays may be divided, each in a way of its own."""
  of = estimators()
  numbers = [jnp.ones(e.reading.shape) for e in of]

  def program():
    return str(
      jax.make_jaxpr(lambda x: alike.of_each(lambda _, x: x + 1, of, x))(numbers)
    )

  assert "platform_index" in program()
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  assert "platform_index" not in program()
