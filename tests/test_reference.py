"""The transformation against the float64 NumPy oracle, over every layer reading."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests import reference, trees

STEPS = 30
PERIODS = [(1, 1), (2, 6), (3, 4), (10, 100)]


def to_jax(flat, dtype):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), trees.nested(flat))


def largest_relative_error(actual, expected):
  """Largest error of a leaf relative to the largest element of that leaf."""
  errors = jax.tree.map(
    lambda a, e: float(np.max(np.abs(np.asarray(a, float) - e)) / np.max(np.abs(e))),
    actual,
    trees.nested(expected),
  )
  return max(jax.tree.leaves(errors))


@contextlib.contextmanager
def precision(name):
  with jax.enable_x64(name == "float64"):
    yield jnp.dtype(name), {"float32": 1e-4, "float64": 1e-10}[name]


def train(tx, oracle, dtype, tolerance, *, warm=False, true_fisher=False, **schedule):
  """Runs both on the same gradients, which depend on their own parameters."""
  rate, decay = schedule.get("rate", 1e-3), schedule.get("decay", 0.0)
  noise = trees.random_gradients(1, STEPS)
  other = trees.random_gradients(2, STEPS)
  params = trees.random_gradients(3, 1)[0]
  ours = to_jax(params, dtype)
  state = tx.init(ours)
  if warm:
    passes = trees.random_gradients(4, 8)
    state = mbf_optax.warm_start(tx, state, ours, (to_jax(g, dtype) for g in passes))
    getattr(oracle, "direction", oracle).warm_start(passes)

  @jax.jit
  def step(ours, state, noise, curvature):
    gradients = jax.tree.map(lambda p, n: 0.3 * p + n, ours, noise)
    extra = {"curvature_gradients": curvature} if true_fisher else {}
    updates, state = tx.update(gradients, state, ours, **extra)
    return optax.apply_updates(ours, updates), state

  expected = reference.trajectory(
    params,
    lambda p, k: {name: 0.3 * p[name] + noise[k][name] for name in p},
    oracle,
    STEPS,
    rate,
    weight_decay=decay,
    curvature_gradient_fn=(lambda p, k: other[k]) if true_fisher else None,
  )
  for k in range(STEPS):
    ours, state = step(ours, state, to_jax(noise[k], dtype), to_jax(other[k], dtype))
    assert largest_relative_error(ours, expected[k]) < tolerance, f"step {k}"
  chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_trajectory(periods, dtype_name, relative):
  common = {
    "damping": 0.3,
    "relative_damping": relative,
    "curvature_update_period": periods[0],
    "inverse_update_period": periods[1],
  }
  with precision(dtype_name) as (dtype, tolerance):
    tx = optax.chain(
      mbf_optax.scale_by_mbf(partition=trees.PARTITION, **common),
      optax.scale_by_learning_rate(1e-3),
    )
    oracle = reference.MbfReference(trees.oracle_layers(), **common)
    train(tx, oracle, dtype, tolerance)
