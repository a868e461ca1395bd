"""``mbf_adam`` against its float64 oracle, and against optax's Adam.

With exact powers in the place of the approximation of ``_linalg/shifts.py`` the library
is the oracle to rounding; with its own it stays within what that approximation may err.
Hyperparameters are traced, so that a compiled step serves many cases.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._estimators import full
from mbf_optax._linalg import batches, products
from mbf_optax._optimizers.persistence import kappa_of
from tests import reference, trees
from tests._optimizers import exact
from tests.contract.common import random_tree
from tests.reference_adam import MbfAdamReference

SHAPES = trees.ADAM_SHAPES
LAYERS = trees.adam_oracle_layers()
STEPS = 30
RATE, DRIFT = 0.01, 0.3  # gradients depend on the parameters: errors would compound
PERIODS = [(1, 1), (1, 10), (3, 4)]
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
LIMITS = {"whole": 256, "cut": 4}  # whether layers are cut into parts
HYPER = {
  "b1": 0.8,
  "b2": 0.99,
  "eps": 1e-6,
  "eps_root": 1e-8,
  "damping": 0.2,
  "exponent": 0.9,
  "output_exponent": 0.4,
  "curvature_ema": 0.9,
}


def damping_schedule(count):
  return 0.3 + 0.02 * jnp.asarray(count, float)


def exponent_schedule(count):
  return 1 / (1 + jnp.asarray(count, float) / 20)


SCHEDULES = {
  "damping": damping_schedule,
  "exponent": exponent_schedule,
  "output_exponent": lambda count: 0.5 * exponent_schedule(count),
}


def to_jax(flat, dtype):
  rounded = {path: x.astype(dtype) for path, x in flat.items()}
  return jax.device_put(trees.nested(rounded, SHAPES))  # all leaves at once


def transformation(limit, nesterov, scheduled, hyper):
  schedules = SCHEDULES if scheduled else {}
  return optax.chain(
    mbf_optax.scale_by_mbf_adam(
      nesterov=nesterov,
      partition=trees.adam_partition(LIMITS[limit]),
      **{**hyper, **schedules},
    ),
    optax.scale(-RATE),
  )


def step(limit, nesterov, scheduled, params, state, noise, curvature, hyper):
  gradients = jax.tree.map(
    lambda p, n: jnp.asarray(DRIFT, p.dtype) * p + n, params, noise
  )
  tx = transformation(limit, nesterov, scheduled, hyper)
  extra = {"curvature_gradients": curvature} if scheduled else {}
  updates, state = tx.update(gradients, state, params, **extra)
  return optax.apply_updates(params, updates), state


compiled_step = jax.jit(step, static_argnums=(0, 1, 2))


# Jitted apart, so that neither finds what was compiled for the other.
exact_step = jax.jit(lambda *args: step(*args), static_argnums=(0, 1, 2))


def follow(dtype_name, periods, limit, nesterov, scheduled, tolerance, take=exact_step):
  """Takes both through ``STEPS`` steps.

  With schedules the statistics have gradients of their own, too.
  """
  with jax.enable_x64(dtype_name == "float64"):
    dtype = jnp.dtype(dtype_name)
    hyper = HYPER | {
      "curvature_update_period": periods[0],
      "inverse_update_period": periods[1],
    }
    oracle = MbfAdamReference(
      LAYERS,
      nesterov=nesterov,
      block_limit=LIMITS[limit],
      **(hyper | SCHEDULES if scheduled else hyper),
    )
    noise, other = (
      trees.random_gradients(seed, STEPS, shapes=SHAPES) for seed in (1, 2)
    )
    (start,) = trees.random_gradients(3, 1, 0.01, SHAPES)
    expected = reference.trajectory(
      start,
      lambda p, k: {name: DRIFT * p[name] + noise[k][name] for name in p},
      oracle,
      STEPS,
      RATE,
      curvature_gradient_fn=(lambda p, k: other[k]) if scheduled else None,
    )
    params = to_jax(start, dtype)
    state = transformation(limit, nesterov, scheduled, hyper).init(params)
    for k in range(STEPS):
      given = to_jax(noise[k], dtype), to_jax(other[k], dtype)
      params, state = take(limit, nesterov, scheduled, params, state, *given, hyper)
      error = trees.largest_relative_error(params, expected[k], LAYERS)
      assert error < tolerance, f"step {k}"
    check_persistence(state, oracle, tolerance)


@pytest.mark.usefixtures("exact_powers")
def test_exact_powers_of_uneven_rows(monkeypatch):
  """Inputs of scales between 0.01 and 100, as nobody normalized them."""
  plain = trees.random_gradients

  def uneven(*args, **kwargs):
    steps = plain(*args, **kwargs)
    for step in steps:
      for name, g in step.items():
        if g.ndim > 1:
          scales = np.geomspace(1e-2, 1e2, g.shape[-2])[:, None]
          step[name] = g * scales
    return steps

  monkeypatch.setattr(trees, "random_gradients", uneven)
  follow("float64", (1, 6), "whole", False, False, TOLERANCE["float64"])


def check_persistence(state, oracle, tolerance):
  """Of every layer, and of each of a stack by itself."""
  found = {path: kappa_of(r) for path, r in state[0].foretold.items()}
  assert found.keys() == oracle.persistence.keys()
  for path, kappas in oracle.persistence.items():
    np.testing.assert_allclose(np.ravel(found[path]), kappas, atol=10 * tolerance)


@pytest.fixture
def exact_powers(monkeypatch):
  monkeypatch.setattr(batches, "_powers", exact.powers)


@pytest.mark.usefixtures("exact_powers")
@pytest.mark.parametrize("periods", PERIODS, ids=str)
def test_exact_powers(periods):
  follow("float64", periods, "whole", False, False, TOLERANCE["float64"])


@pytest.mark.usefixtures("exact_powers")
def test_exact_powers_in_float32():
  follow("float32", (1, 10), "whole", False, False, TOLERANCE["float32"])


@pytest.mark.usefixtures("exact_powers")
@pytest.mark.parametrize(
  "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)
def test_exact_powers_of_parts_under_nesterov(dtype):
  follow(dtype, (1, 6), "cut", True, False, TOLERANCE[dtype])


@pytest.mark.usefixtures("exact_powers")
def test_exact_powers_under_schedules_and_with_curvature_gradients():
  follow("float64", (2, 6), "whole", False, True, TOLERANCE["float64"])


@pytest.mark.parametrize("periods", PERIODS, ids=str)
def test_own_powers_stay_within_their_bound(periods):
  follow("float32", periods, "whole", False, False, 2e-2, compiled_step)


# Precision.


@pytest.fixture
def products_in_tf32(monkeypatch):
  """``"high"`` on CUDA: factors keep ten bits of their fractions, sums are float32."""

  def rounded(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)

  def product(a, b):
    return jnp.matmul(rounded(a), rounded(b), precision="highest")

  for module in (products, full):
    monkeypatch.setattr(module, "multiply", product)


tf32_step = jax.jit(lambda *args: step(*args), static_argnums=(0, 1, 2))


@pytest.mark.usefixtures("exact_powers", "products_in_tf32")
def test_products_in_tf32_stay_within_their_bound():
  follow("float32", (1, 10), "whole", False, False, 5e-3, tf32_step)


# Blocks of one element.

ONES = {
  "conv": {"kernel": (1, 1, 1, 6)},
  "dense": {"kernel": (1, 6)},
  "free": (2, 3),
  "full": {"kernel": (1, 6)},
  "head": {"kernel": (7, 4), "bias": (4,)},
  "norm": {"scale": (3,)},
}
ADAM_CALLS = [
  {},
  {"nesterov": True},
  {"eps": 1e-3, "eps_root": 1e-2, "b1": 0.5, "b2": 0.8},
  {"mu_dtype": "bfloat16"},
  {"mu_dtype": "bfloat16", "nesterov": True},
  {"b1": 0.0},
]


@pytest.mark.promotes
@pytest.mark.parametrize("call", ADAM_CALLS, ids=str)
def test_blocks_of_one_element_and_heads_move_as_under_adam(call):
  """Matrices of order one, unnamed leaves, convolution biases and small heads."""
  partition = mbf_optax.flax_partition(overrides=[("full", "full"), ("conv", "shared")])
  ours = mbf_optax.mbf_adam(0.1, partition=partition, **call)
  theirs = optax.adam(0.1, **call)
  params = random_tree(0, ONES)

  @jax.jit
  def train(params):
    def step(states, gradients):
      updates, given = ours.update(gradients, states[0], params)
      expected, adam = theirs.update(gradients, states[1], params)
      return (given, adam), (updates, expected)

    gradients = [random_tree(seed, ONES) for seed in range(1, 13)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    return jax.lax.scan(step, (ours.init(params), theirs.init(params)), stacked)

  (state, adam), (updates, expected) = train(params)
  chex.assert_trees_all_close(updates, expected, rtol=2e-6, atol=1e-8)
  chex.assert_trees_all_close(state[0].adam, adam[0], rtol=2e-6, atol=1e-8)
  # Matrices of order one where they are asked for, and none elsewhere.
  assert list(state[0].curvature) == ["conv/kernel", "full/kernel"]


# What follows from the lengths and the scaling.

SMALL = {
  "conv": {"kernel": (2, 2, 1, 2), "bias": (2,)},
  "dense": {"kernel": (3, 5), "bias": (5,)},
  "norm": {"scale": (3,)},
  "one_sided": {"kernel": (3, 5), "bias": (5,)},
}
PARTITION = mbf_optax.flax_partition(overrides=[("one_sided", "shared")])
GRADIENTS = [random_tree(seed, SMALL) for seed in range(6)]


@functools.cache
def drop_in():
  """Adam's epsilon is the one number of ``mbf_adam`` that has a unit."""
  tx = mbf_optax.mbf_adam(0.1, eps=1e-16, partition=PARTITION, inverse_update_period=4)
  return tx, jax.jit(tx.update)


def run(gradients, transformation=None):
  tx, update = transformation or drop_in()
  state = tx.init(gradients[0])
  for gradient in gradients:
    updates, state = update(gradient, state)
    yield updates, state


def updates_of(gradients):
  return [updates for updates, _ in run(gradients)]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_the_gradients_does_not_matter(scale):
  scaled = [jax.tree.map(lambda g: scale * g, g) for g in GRADIENTS]
  for given, expected in zip(updates_of(scaled), updates_of(GRADIENTS), strict=True):
    chex.assert_trees_all_close(given, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("module", ["conv", "dense", "one_sided"])
def test_scales_of_layers_do_not_matter_to_one_another(module):
  scaled = [
    {**g, module: jax.tree.map(lambda g: 1e4 * g, g[module])} for g in GRADIENTS
  ]
  for given, expected in zip(updates_of(scaled), updates_of(GRADIENTS), strict=True):
    chex.assert_trees_all_close(given, expected, rtol=1e-4, atol=1e-6)


def test_lengths_are_adams():
  """Of every neuron or kernel, or of a layer with matrices on both sides."""
  theirs = optax.scale_by_adam(eps=1e-16)
  adam = theirs.init(GRADIENTS[0])
  for gradients, updates in zip(GRADIENTS, updates_of(GRADIENTS), strict=True):
    expected, adam = theirs.update(gradients, adam)

    def length(tree, module, axis):
      leaf = tree[module]["kernel"].reshape(-1, tree[module]["kernel"].shape[-1])
      if module != "conv":
        leaf = jnp.concatenate([leaf, tree[module]["bias"][None]])
      return np.linalg.norm(leaf, axis=axis)

    for module, axis in (("conv", 0), ("one_sided", 0), ("dense", None)):
      np.testing.assert_allclose(
        length(updates, module, axis), 0.1 * length(expected, module, axis), rtol=1e-4
      )


def test_refreshes_double_and_then_keep_the_period():
  tx = mbf_optax.mbf_adam(0.1, partition=PARTITION, inverse_update_period=10)
  gradients = list(itertools.islice(itertools.cycle(GRADIENTS), 33))
  changed, before = [], None
  for t, (_, state) in enumerate(run(gradients, (tx, jax.jit(tx.update))), start=1):
    inverse = np.asarray(state[0].curvature["one_sided/kernel"].inverse)
    if before is not None and not np.array_equal(inverse, before):
      changed.append(t)
    before = inverse
  assert changed == [2, 4, 8, 11, 21, 31]


def test_stacked_layers_are_layers_of_their_own():
  """Whatever the scales of their gradients: persistence, matrices and lengths."""
  shapes = {"kernel": (3, 5), "bias": (5,)}
  pairs = [[random_tree(10 * i + j, shapes) for j in range(2)] for i in range(3)]
  pairs = [
    [
      jax.tree.map(lambda g, s=s: s * g, g)
      for g, s in zip(pair, (1.0, 1e3), strict=True)
    ]
    for pair in pairs
  ]
  stacked = [
    {"stack": jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)} for pair in pairs
  ]
  apart = [{"first": pair[0], "second": pair[1]} for pair in pairs]
  tx = mbf_optax.mbf_adam(0.1, eps=1e-16)
  (reading,) = mbf_optax.flax_partition()(stacked[0])
  assert reading.layer.stack_axes == (0,)
  transformation = tx, jax.jit(tx.update)
  for (together, _), (alone, _) in zip(
    run(stacked, transformation), run(apart, transformation), strict=True
  ):
    for index, name in enumerate(("first", "second")):
      part = jax.tree.map(lambda leaf, index=index: leaf[index], together["stack"])
      chex.assert_trees_all_close(part, alone[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_exponent_zero_is_momentum_at_adams_length(exponent):
  """And a larger one is not."""
  tx = mbf_optax.scale_by_mbf_adam(
    exponent=exponent, output_exponent=exponent, partition=PARTITION
  )
  differs = False
  for updates, state in run(GRADIENTS, (tx, jax.jit(tx.update))):
    for module in ("conv", "dense"):
      d, m = updates[module]["kernel"], state.adam.mu[module]["kernel"]
      d, m = (np.reshape(x, (-1, x.shape[-1])) for x in (d, m))
      if module == "dense":
        d, m = np.ravel(d), np.ravel(m)
      cosine = np.sum(d * m, axis=0) / np.linalg.norm(d, axis=0)
      aligned = np.allclose(cosine, np.linalg.norm(m, axis=0), rtol=1e-4)
      differs |= not aligned
  assert differs == bool(exponent)
