"""What is to be watched while training, against NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from tests.contract import common

EMA, DAMPING, STEPS = 0.7, 0.2, 3
SHAPES = {
  "conv": {"kernel": (3, 2, 2, 3), "bias": (3,)},
  "conv_shared": {"kernel": (3, 1, 2, 2)},
  "dense": {"kernel": (4, 3), "bias": (3,)},
  "dense_wide": {"kernel": (35, 2), "bias": (2,)},
  "low_rank": {"kernel": (8, 3), "bias": (3,)},
  "norm": {"scale": (4,), "bias": (4,)},
  "stack": {
    "conv": {"kernel": (2, 3, 2, 2, 2), "bias": (2, 2)},
    "low_rank": {"kernel": (2, 6, 3), "bias": (2, 3)},
    "shared": {"kernel": (2, 4, 3), "bias": (2, 3)},
  },
}
LAYERS = {  # path of a kernel: how many of its axes make up a block, how many stack
  "conv/kernel": (2, 0),
  "conv_shared/kernel": (2, 0),
  "dense/kernel": (1, 0),
  "dense_wide/kernel": (1, 0),
  "low_rank/kernel": (1, 0),
  "stack/conv/kernel": (2, 1),
  "stack/low_rank/kernel": (1, 1),
  "stack/shared/kernel": (1, 1),
}
PARTITION = mbf_optax.flax_partition(
  "full", rank=5, overrides=[("shared", "shared"), ("low_rank", "low_rank")]
)
TX = mbf_optax.scale_by_mbf(
  DAMPING, curvature_ema=EMA, inverse_update_period=1, partition=PARTITION
)
GRADIENTS = [common.random_tree(seed, SHAPES) for seed in range(STEPS)]


@jax.jit
def watch(state, gradients, updates):
  """The metrics, from the state alone and with the other arguments."""
  return (
    mbf_optax.metrics(state, partition=PARTITION),
    mbf_optax.metrics(state, gradients, updates, PARTITION),
  )


@pytest.fixture(scope="module")
def trained():
  """State after some steps, and the direction of the last."""
  state, update = TX.init(GRADIENTS[0]), jax.jit(TX.update)
  for gradient in GRADIENTS:
    directions, state = update(gradient, state)
  return state, directions


@pytest.fixture(scope="module")
def watched(trained):
  state, directions = trained
  return watch(state, GRADIENTS[-1], jax.tree.map(lambda d: -0.1 * d, directions))


def vectors(tree, path):
  """Block vectors ``(stack, blocks, n)`` of a kernel and the bias joined to it."""
  axes, stacked = LAYERS[path]
  for key in path.split("/")[:-1]:
    tree = tree[key]
  kernel = np.asarray(tree["kernel"], np.float64)
  stack = int(np.prod(kernel.shape[:stacked]))
  size = int(np.prod(kernel.shape[stacked : stacked + axes]))
  rows = [kernel.reshape(stack, size, -1)]
  if "bias" in tree and "conv" not in path:
    rows.append(np.asarray(tree["bias"], np.float64).reshape(stack, 1, -1))
  return np.swapaxes(np.concatenate(rows, axis=1), 1, 2)


def damped(path):
  """The matrices ``(count, n, n)`` that the layer inverts, from all gradients."""
  weights = EMA ** np.arange(STEPS)[::-1]
  blocks = [vectors(gradient, path) for gradient in GRADIENTS]
  outer = [b[..., :, None] * b[..., None, :] for b in blocks]
  statistics = np.average(outer, axis=0, weights=weights)
  if "shared" in path:
    statistics = statistics.mean(axis=1, keepdims=True)
  n = statistics.shape[-1]
  return statistics.reshape(-1, n, n) + DAMPING * np.eye(n)


@pytest.mark.parametrize("path", LAYERS)
def test_condition_is_right_within_the_size_of_a_block(watched, path):
  matrices = damped(path)
  exact, n = np.linalg.cond(matrices), matrices.shape[-1]
  layer = watched[0][path]
  for estimate, value in (
    (layer.condition, np.exp(np.log(exact).mean())),
    (layer.largest_condition, exact.max()),
  ):
    assert value / n <= estimate <= n * value + 1


@pytest.mark.parametrize("path", LAYERS)
def test_condition_is_that_of_the_diagonals(watched, path):
  """Not merely some number within the bounds."""
  matrices = damped(path)
  n = matrices.shape[-1]
  trace = np.trace(matrices - DAMPING * np.eye(n), axis1=1, axis2=2)
  inverse = np.linalg.inv(matrices).diagonal(axis1=1, axis2=2).max(axis=1)
  expected = 1 + trace * (1 / DAMPING if "low_rank" in path else inverse)
  layer = watched[0][path]
  np.testing.assert_allclose(layer.condition, np.exp(np.log(expected).mean()), 1e-4)
  np.testing.assert_allclose(layer.largest_condition, expected.max(), 1e-4)


def test_layers_are_those_of_blocks(watched):
  for layers in watched:
    assert list(layers) == list(LAYERS)
    for value in jax.tree.leaves(layers):
      assert value.shape == ()
      assert value.dtype == jnp.float32


@pytest.mark.parametrize("path", LAYERS)
def test_norm_and_cosine(trained, watched, path):
  state, directions = trained
  direction, momentum, gradient = (
    vectors(tree, path).ravel() for tree in (directions, state.momentum, GRADIENTS[-1])
  )

  def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

  alone, given = (layers[path] for layers in watched)
  length = np.linalg.norm(direction)
  np.testing.assert_allclose(alone.norm, length, 1e-4)
  np.testing.assert_allclose(given.norm, 0.1 * length, 1e-4)
  np.testing.assert_allclose(alone.cosine, cosine(direction, momentum), atol=1e-5)
  np.testing.assert_allclose(given.cosine, -cosine(direction, gradient), atol=1e-5)
  assert given.condition == alone.condition


def test_inverses_kept_in_bfloat16():
  tx = mbf_optax.scale_by_mbf(partition=PARTITION, inverse_dtype="bfloat16")
  layers = jax.eval_shape(watch, tx.init(GRADIENTS[0]), GRADIENTS[0], GRADIENTS[0])
  assert {value.dtype for value in jax.tree.leaves(layers)} == {jnp.dtype("float32")}


def test_before_the_first_step():
  zeros = jax.tree.map(jnp.zeros_like, GRADIENTS[0])
  for layers in watch(TX.init(zeros), zeros, zeros):
    assert all(layer == (0, 1, 1, 1, 0, 0) for layer in layers.values())


SMALL = {"a": {"kernel": jnp.ones((3, 5))}, "b": {"kernel": jnp.ones((4, 5))}}
PATHS = ["a/kernel", "b/kernel"]


@jax.jit
def watch_first_step(gradients):
  tx = mbf_optax.scale_by_mbf(0.1, relative_damping=True)
  _, state = tx.update(gradients, tx.init(gradients))
  squares = jax.tree.map(jnp.square, gradients)
  return mbf_optax.metrics(state, gradients, squares)


@pytest.mark.parametrize("scale", [1e-12, 1e16])
def test_tiny_and_huge_gradients(scale):
  """Squares of the updates, and of the statistics, are beyond float32."""
  gradients = {"a": {"kernel": jnp.full((3, 2), scale)}}
  layer = watch_first_step(gradients)["a/kernel"]
  np.testing.assert_allclose(layer.condition, 1 + 3 / 0.1 * (1 - 1 / 3.1), 1e-4)
  np.testing.assert_allclose(layer.norm, scale**2 * 6**0.5, 1e-4)
  np.testing.assert_allclose(layer.cosine, 1, 1e-4)


def test_a_cosine_is_one_at_most():
  """Also of vectors that rounding makes longer than their own lengths."""
  state = mbf_optax.scale_by_mbf(0.1).init({"a": {"kernel": jnp.ones((3, 5))}})

  def cosine(kernel):
    gradients = {"a": {"kernel": kernel}}
    return mbf_optax.metrics(state, gradients, gradients)["a/kernel"].cosine

  kernels = jax.random.normal(jax.random.key(0), (100, 3, 5))
  found = jax.jit(jax.vmap(cosine))(kernels)
  assert found.max() == 1
  assert found.min() > 1 - 1e-6


@jax.jit
def watch_mbf_adam(gradients):
  """After the same gradient twice and its opposite once."""
  tx = mbf_optax.mbf_adam(0.1, b1=0.0, inverse_update_period=1)
  state, found = tx.init(gradients), []
  for sign in (1, 1, -1):
    given = jax.tree.map(lambda g, sign=sign: sign * g, gradients)
    updates, state = tx.update(given, state)
    found.append(mbf_optax.metrics(state, given, updates))
  return found, updates, state


def test_persistence_exponent_and_spread_of_mbf_adam():
  gradients = common.random_tree(0, {"a": {"kernel": (3, 5)}})
  found, updates, state = watch_mbf_adam(gradients)
  kappas = [layers["a/kernel"].persistence for layers in found]
  exponents = [layers["a/kernel"].exponent for layers in found]
  # Of r = 1 and -1 the average is 0.09 - 0.1, corrected or not below zero.
  np.testing.assert_allclose(kappas, [1, 1, 0], atol=1e-5)
  np.testing.assert_allclose(exponents, [0, 0, 1], atol=1e-2)
  last = found[-1]["a/kernel"]
  sides = state[0].curvature["a/kernel"]
  ratios = [
    np.diag(side.inverse[0]).max() / np.diag(side.inverse[0]).min() for side in sides
  ]
  np.testing.assert_allclose(last.condition, max(ratios), rtol=1e-5)
  np.testing.assert_allclose(last.norm, optax.tree.norm(updates), rtol=1e-5)
  u, g = np.ravel(updates["a"]["kernel"]), -np.ravel(gradients["a"]["kernel"])
  cosine = u @ g / np.linalg.norm(u) / np.linalg.norm(g)
  np.testing.assert_allclose(last.cosine, cosine, rtol=1e-4)
  assert cosine < 0


def inject(damping):
  return optax.inject_hyperparams(mbf_optax.mbf)(0.1, damping=damping)


WRAPPED = {
  "scale_by_mbf": (mbf_optax.scale_by_mbf(), PATHS),
  "mbf": (mbf_optax.mbf(0.1), PATHS),
  "mbf_adam": (mbf_optax.mbf_adam(0.1), PATHS),
  "inject_hyperparams": (inject(0.1), PATHS),
  "MultiSteps": (optax.MultiSteps(mbf_optax.mbf(0.1), 2), PATHS),
  "apply_if_finite": (optax.apply_if_finite(mbf_optax.mbf_adam(0.1), 3), PATHS),
  "masked": (optax.masked(mbf_optax.mbf(0.1), {"a": True, "b": False}), PATHS[:1]),
  "partition": (
    optax.partition(
      {"x": mbf_optax.mbf(0.1), "y": mbf_optax.mbf_adam(0.1)}, {"a": "x", "b": "y"}
    ),
    PATHS,
  ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_state_is_found_wherever_it_is(name):
  tx, paths = WRAPPED[name]
  layers = jax.eval_shape(mbf_optax.metrics, tx.init(SMALL), SMALL, SMALL)
  assert list(layers) == paths


@pytest.mark.parametrize("optimizer", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_a_state_without_parameters_has_no_layers(optimizer):
  tx = optax.partition({"a": optimizer(0.1), "b": optimizer(0.2)}, "a")
  params = {"dense": {"kernel": jnp.ones((3, 8))}}
  assert list(mbf_optax.metrics(tx.init(params))) == ["dense/kernel"]
  assert mbf_optax.metrics(optimizer(0.1).init({})) == {}


def refused(*parts):
  return pytest.raises(ValueError, match="[^$]*".join(map(re.escape, parts)))


def test_state_without_mbf():
  with refused("no MbfState", "tx.init"):
    mbf_optax.metrics(optax.sgd(0.1, 0.9).init(SMALL))


def test_two_states_of_one_layer():
  tx = optax.chain(mbf_optax.scale_by_mbf(), mbf_optax.scale_by_mbf())
  with refused("two states", "'a/kernel'", "by itself"):
    mbf_optax.metrics(tx.init(SMALL))


@pytest.mark.parametrize("reading", ["rms", "shared", "low_rank"])
def test_partition_of_another_transformation(reading):
  partition = mbf_optax.flax_partition(overrides=[("b", reading)])
  state = mbf_optax.mbf(0.1, partition=partition).init(SMALL)
  assert jax.eval_shape(lambda: mbf_optax.metrics(state, partition=partition))
  with refused("'b/kernel'", "partition that the transformation was given"):
    mbf_optax.metrics(state)


@pytest.mark.parametrize("argument", ["gradients", "updates"])
@pytest.mark.parametrize("wrong", [{"a": SMALL["a"]}, {**SMALL, "b": SMALL["a"]}])
def test_trees_that_differ_from_the_parameters(argument, wrong):
  state = mbf_optax.scale_by_mbf().init(SMALL)
  with refused(f"{argument} has no leaf 'b/kernel' of shape (4, 5)"):
    mbf_optax.metrics(state, **{argument: wrong})


def test_a_partition_that_reads_nothing_of_the_state_is_refused():
  """In place of an empty answer."""
  params = {"mlp": {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}}
  single = mbf_optax.flax_partition(overrides=[("mlp", "rms")])
  for factory in (mbf_optax.mbf, mbf_optax.mbf_adam):
    state = factory(0.1, partition=single).init(params)
    with refused("'mlp/", "partition that the transformation was given"):
      mbf_optax.metrics(state)
