"""The transformation against the float64 NumPy oracle, over every layer reading.

Periods and hyperparameters are traced, so one compiled step serves many cases.
"""

import functools

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
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


DECAY = 0.1
DRIFT = 0.3  # gradients depend on the parameters, so that errors would compound


def rate(count):
  return 0.03 / (1 + jnp.asarray(count, float) / 10)


def damping_schedule(count):
  return 0.3 + 0.02 * jnp.asarray(count, float)


def to_jax(flat, dtype):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), trees.nested(flat))


def largest_relative_error(actual, expected):
  """Largest error of a layer relative to the largest element of that layer.

  A layer here is what mini-blocks join: a kernel and the bias that is part of its
  blocks, else a lone leaf. A block's inverse mixes its elements, so it rounds a bias as
  coarsely as the weights beside it, however small the bias is at that step.
  """
  actual = trees.flat(actual)
  errors = []
  for names in trees.joined():
    wrong = [np.asarray(actual[name], float) - expected[name] for name in names]
    largest = max(np.max(np.abs(expected[name])) for name in names)
    errors.append(max(np.max(np.abs(leaf)) for leaf in wrong) / largest)
  return max(errors)


def transformation(hyper, **static):
  return optax.chain(
    mbf_optax.scale_by_mbf(partition=trees.PARTITION, **static, **hyper),
    optax.add_decayed_weights(DECAY),
    optax.scale_by_learning_rate(rate),
  )


@functools.cache
def compiled_step(true_fisher, **static):
  """A jitted training step whose hyperparameters are arguments."""

  @jax.jit
  def step(params, state, noise, curvature, hyper):
    gradients = jax.tree.map(
      lambda p, n: jnp.asarray(DRIFT, p.dtype) * p + n, params, noise
    )
    extra = {"curvature_gradients": curvature} if true_fisher else {}
    tx = transformation(hyper, **static)
    updates, state = tx.update(gradients, state, params, **extra)
    return optax.apply_updates(params, updates), state

  return step


def check(
  dtype_name, periods, *, warm=False, true_fisher=False, scheduled=False, relative=False
):
  """Follows the oracle for ``STEPS`` steps; gradients depend on the parameters."""
  with jax.enable_x64(dtype_name == "float64"):
    dtype = jnp.dtype(dtype_name)
    hyper = {"curvature_update_period": periods[0], "inverse_update_period": periods[1]}
    damping = damping_schedule if scheduled else 0.3
    oracle = reference.MbfReference(
      trees.oracle_layers(), damping=damping, relative_damping=relative, **hyper
    )
    static = {"relative_damping": relative}
    if scheduled:
      static["damping"] = damping
    else:
      hyper["damping"] = damping
    noise = trees.random_gradients(1, STEPS)
    other = trees.random_gradients(2, STEPS)
    start = {p: 0.01 * x for p, x in trees.random_gradients(3, 1)[0].items()}
    params = to_jax(start, dtype)
    tx = transformation(hyper, **static)
    state = tx.init(params)
    if warm:
      passes = trees.random_gradients(4, 8)
      oracle.warm_start(passes)
      gradients = (to_jax(g, dtype) for g in passes)
      state = mbf_optax.warm_start(tx, state, params, gradients)

    expected = reference.trajectory(
      start,
      lambda p, k: {name: DRIFT * p[name] + noise[k][name] for name in p},
      oracle,
      STEPS,
      rate,
      weight_decay=DECAY,
      curvature_gradient_fn=(lambda p, k: other[k]) if true_fisher else None,
    )
    step = compiled_step(true_fisher, **static)
    for k in range(STEPS):
      given = to_jax(noise[k], dtype), to_jax(other[k], dtype)
      params, state = step(params, state, *given, hyper)
      error = largest_relative_error(params, expected[k])
      assert error < TOLERANCE[dtype_name], f"step {k}"
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_start(dtype, periods):
  check(dtype, periods)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_warm_start(dtype, periods):
  check(dtype, periods, warm=True)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relative_damping(dtype, periods):
  check(dtype, periods, relative=True)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mbf_true_with_damping_schedule(dtype, periods):
  check(dtype, periods, true_fisher=True, scheduled=True)
