"""What the experiments ask of every baseline: dtypes, scans, grids, the last stages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks import baselines
from benchmarks.baselines.kfac import Factors
from tests.benchmarks.common import random_gradients

SHAPES = {
  "conv": {"bias": (2,), "kernel": (2, 2, 2, 2)},
  "dense": {"bias": (2,), "kernel": (2, 2)},
  "norm": {"scale": (2,)},
}
ORDERS = {"conv": (9, 2), "dense": (3, 2)}
FACTORS = {path: Factors(*map(jnp.eye, orders)) for path, orders in ORDERS.items()}
PERIODIC = {"inverse_update_period": 2}
MAKERS = {
  "bdf": lambda rate: baselines.bdf(rate, damping=rate, **PERIODIC),
  "kfac": lambda rate: baselines.kfac(rate, damping=rate, **PERIODIC),
  "shampoo": lambda rate: baselines.shampoo(rate, damping=rate, **PERIODIC),
  "soap": lambda rate: baselines.soap(rate, b2=1 - rate, frequency=2),
  "mbf_on_adam": lambda rate: baselines.mbf_on_adam(rate, **PERIODIC),
  "kfac_adam": lambda rate: baselines.kfac_adam(rate, damping=rate, **PERIODIC),
  "momentum_adam": lambda rate: baselines.momentum_adam(rate, momentum=1 - rate),
  "shampoo_adam": lambda rate: baselines.shampoo_adam(rate, damping=rate, **PERIODIC),
}
DIRECTIONS = {
  "bdf": baselines.scale_by_bdf,
  "kfac": baselines.scale_by_kfac,
  "shampoo": baselines.scale_by_shampoo,
  "soap": baselines.scale_by_soap,
}
each = pytest.mark.parametrize("name", MAKERS)
(PARAMS,) = random_gradients(SHAPES, 1)


def update(tx, params, state):
  """The loss is half a sum of squares: its gradients are the parameters."""
  tx = optax.with_extra_args_support(tx)
  return tx.update(params, state, params, factors=FACTORS)


@pytest.mark.promotes
@each
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_states_and_updates_keep_their_dtypes(name, dtype):
  params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
  tx = MAKERS[name](0.1)
  state = jax.eval_shape(tx.init, params)
  after = jax.eval_shape(functools.partial(update, tx), params, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


def train(name, rate):
  tx = MAKERS[name](rate)

  def body(carry, _):
    updates, state = update(tx, *carry)
    params = optax.apply_updates(carry[0], updates)
    return (params, state), optax.tree.norm(params)

  _, norms = jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), length=4)
  return norms


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["bdf", "kfac", "shampoo", "soap"])
def test_a_grid_of_trainings(name):
  """Each cell is the training alone, and the periods remain conditions."""
  grid = jnp.array([0.02, 0.1])
  mapped = jax.vmap(lambda rate: train(name, rate))
  assert str(jax.make_jaxpr(mapped)(grid)).count("cond[") >= (
    1 if name == "soap" else 2
  )
  norms = jax.jit(mapped)(grid)
  assert np.all(norms[:, -1] < norms[:, 0])
  alone = jax.jit(lambda rate: train(name, rate))(grid[1])
  np.testing.assert_allclose(norms[1], alone, rtol=1e-4)


@pytest.mark.promotes
@pytest.mark.parametrize("name", DIRECTIONS)
def test_learning_rate_and_weight_decay(name):
  @jax.jit
  def updates():
    direction = optax.with_extra_args_support(DIRECTIONS[name]())
    tx = getattr(baselines, name)(0.5, weight_decay=0.2)
    along, _ = direction.update(PARAMS, direction.init(PARAMS), factors=FACTORS)
    found, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, factors=FACTORS)
    return along, found

  along, found = updates()
  expected = jax.tree.map(lambda d, p: -0.5 * (d + 0.2 * p), along, PARAMS)
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["kfac", "momentum", "shampoo"])
def test_grafted_on_adam(name):
  """The layers' directions are the baseline's, their lengths Adam's."""
  rate, adam = 0.1, optax.scale_by_adam()
  grafted = getattr(baselines, f"{name}_adam")(rate)
  direction = DIRECTIONS.get(name, lambda: optax.trace(0.9))()

  @jax.jit
  def two_steps():
    results = []
    for tx in map(optax.with_extra_args_support, (grafted, direction, adam)):
      state = tx.init(PARAMS)
      for scale in (1.0, -0.5):
        gradients = jax.tree.map(lambda p, s=scale: s * p + 0.1, PARAMS)
        updates, state = tx.update(gradients, state, PARAMS, factors=FACTORS)
      results.append(updates)
    return results

  found, along, sized = two_steps()
  for layer, leaf in (("conv", "kernel"), ("dense", None)):
    f, d, a = (
      np.concatenate([np.ravel(v) for k, v in tree[layer].items() if leaf in (k, None)])
      for tree in (found, along, sized)
    )
    expected = -rate * np.linalg.norm(a) * d / np.linalg.norm(d)
    np.testing.assert_allclose(f, expected, rtol=1e-4, atol=1e-6)
  chex.assert_trees_all_close(
    found["norm"], jax.tree.map(lambda a: -rate * a, sized["norm"]), rtol=1e-5
  )


@pytest.mark.promotes
@pytest.mark.parametrize("lengths", ["layer", "block"])
def test_mbf_on_adam(lengths):
  """The paper's direction, as long as Adam's in the layer or in every neuron."""
  rate, adam = 0.1, optax.scale_by_adam()
  grafted = baselines.mbf_on_adam(rate, lengths=lengths, **PERIODIC)
  direction = mbf_optax.scale_by_mbf(0.1, relative_damping=True, **PERIODIC)

  @jax.jit
  def two_steps():
    results = []
    for tx in (grafted, direction, adam):
      state = tx.init(PARAMS)
      for scale in (1.0, -0.5):
        gradients = jax.tree.map(lambda p, s=scale: s * p + 0.1, PARAMS)
        updates, state = tx.update(gradients, state, PARAMS)
      results.append(updates["dense"])
    return results

  f, d, a = (np.vstack([t["kernel"], t["bias"]]) for t in two_steps())
  axis = 0 if lengths == "block" else (0, 1)
  length, own = (np.linalg.norm(v, axis=axis, keepdims=True) for v in (a, d))
  np.testing.assert_allclose(f, -rate * length * d / own, rtol=1e-4, atol=1e-6)
