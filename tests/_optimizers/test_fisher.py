"""``mbf`` against the float64 NumPy oracle, over every layer reading.

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
  rounded = {path: x.astype(dtype) for path, x in flat.items()}
  return jax.device_put(trees.nested(rounded))  # all leaves at once


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
    hyper = {
      "momentum": 0.8,
      "curvature_ema": 0.85,
      "curvature_update_period": periods[0],
      "inverse_update_period": periods[1],
    }
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
      error = trees.largest_relative_error(params, expected[k], oracle.layers)
      assert error < TOLERANCE[dtype_name], f"step {k}"
    chex.assert_tree_all_finite(state)


# Wide numbers show more; a program for either is compiled for a long time.
each_dtype = pytest.mark.parametrize(
  "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_start(dtype, periods):
  check(dtype, periods)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@each_dtype
def test_warm_start(dtype, periods):
  check(dtype, periods, warm=True)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@each_dtype
def test_relative_damping(dtype, periods):
  check(dtype, periods, relative=True)


@pytest.mark.parametrize("periods", PERIODS, ids=str)
@each_dtype
def test_mbf_true_with_damping_schedule(dtype, periods):
  check(dtype, periods, true_fisher=True, scheduled=True)


# Explicit matrices.


def network(params, images):
  """A convolution and a dense layer, in float64 as in float32."""
  hidden = jax.lax.conv_general_dilated(
    images,
    params["Conv_0"]["kernel"],
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  hidden = jnp.tanh(hidden + params["Conv_0"]["bias"].reshape(1, 1, 1, -1))
  hidden = hidden.reshape(len(images), -1)
  bias = params["Dense_1"]["bias"]
  logits = jnp.matmul(hidden, params["Dense_1"]["kernel"]) + bias.reshape(1, -1)
  return jax.nn.log_softmax(logits)


def mini_blocks(numbers):
  """The elements' numbers of every mini-block, written out from the paper."""
  conv, dense = numbers["Conv_0"], numbers["Dense_1"]
  for i in range(conv["kernel"].shape[2]):
    for j in range(conv["kernel"].shape[3]):
      yield [conv["kernel"][y, x, i, j] for y in range(2) for x in range(2)]
  for j in range(len(conv["bias"])):
    yield [conv["bias"][j]]
  for j in range(len(dense["bias"])):
    yield [*dense["kernel"][:, j], dense["bias"][j]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_direction_is_that_of_the_dense_block_diagonal_fisher(dtype):
  with jax.enable_x64(dtype == "float64"):
    rng = np.random.default_rng(0)
    shapes = {
      "Conv_0": {"kernel": (2, 2, 2, 2), "bias": (2,)},
      "Dense_1": {"kernel": (8, 3), "bias": (3,)},
    }
    params = jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
      shapes,
      is_leaf=lambda node: isinstance(node, tuple),
    )
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = jax.tree.unflatten(
      structure,
      [
        np.arange(end - leaf.size, end).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
      ],
    )

    @jax.jit
    def gradient(params, images, labels):
      def loss(params):
        picked = jnp.take_along_axis(network(params, images), labels[:, None], 1)
        return -jnp.mean(picked)

      return jax.grad(loss)(params)

    damping, mu, beta = 1e-2, 0.9, 0.8
    tx = mbf_optax.scale_by_mbf(
      damping=damping,
      momentum=mu,
      curvature_ema=beta,
      curvature_update_period=1,
      inverse_update_period=1,
    )
    state, update = tx.init(params), jax.jit(tx.update)
    fisher, momentum = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1])
    for step in range(4):
      images = jnp.asarray(rng.normal(size=(5, 3, 3, 2)), dtype)
      gradients = gradient(params, images, jnp.asarray(rng.integers(0, 3, 5)))
      updates, state = update(gradients, state)
      flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
      flat = flat.astype(np.float64)
      momentum = mu * momentum + flat
      outer = np.zeros_like(fisher)
      for block in mini_blocks(numbers):
        outer[np.ix_(block, block)] = np.outer(flat[block], flat[block])
      fisher = beta * fisher + (1 - beta) * outer
      damped = fisher / (1 - beta ** (step + 1)) + damping * np.eye(len(flat))
      expected = np.linalg.solve(damped, momentum)
      given = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
      tolerance = 2e-4 if dtype == "float32" else 1e-11
      np.testing.assert_allclose(
        given, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
      )
