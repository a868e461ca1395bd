"""KFAC: factors from explicit examples and patches, directions from dense matrices."""

import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.baselines import capture, scale_by_kfac
from benchmarks.baselines.kfac import Factors
from tests.benchmarks import perceptron
from tests.benchmarks.common import random_gradients, run

EXAMPLES = 6
jitted_capture = jax.jit(capture, static_argnums=0, static_argnames="has_aux")


def second_moment(rows):
  return sum(np.outer(row, row) for row in np.float64(rows)) / len(rows)


@pytest.mark.promotes
def test_dense_factors_are_those_of_the_examples():
  """Backpropagation by hand, one example at a time; no bias in the second layer."""
  shapes = {"Dense_0": perceptron.SHAPES["Dense_0"], "Dense_1": {"kernel": (4, 2)}}
  params, x, labels = perceptron.problem(shapes)
  loss = functools.partial(perceptron.loss, perceptron.Perceptron(last_bias=False))
  captured = jitted_capture(loss, params, x, labels)
  value, gradients = jax.jit(jax.value_and_grad(loss))(params, x, labels)
  chex.assert_trees_all_close(
    (captured.value, captured.gradients), (value, gradients), rtol=1e-4, atol=1e-7
  )

  first, last = (np.float64(params[layer]["kernel"]) for layer in shapes)
  rows = {name: [] for name in ("A0", "G0", "A1", "G1")}
  for example, label in zip(np.float64(x), np.asarray(labels), strict=True):
    hidden = np.tanh(example @ first + np.float64(params["Dense_0"]["bias"]))
    logits = hidden @ last
    signal = np.exp(logits) / np.exp(logits).sum() - np.eye(2)[label]
    rows["A0"].append([*example, 1])
    rows["G0"].append((last @ signal) * (1 - hidden**2))
    rows["A1"].append(hidden)
    rows["G1"].append(signal)
  for index, factors in enumerate(captured.factors.values()):
    for name, factor in zip("AG", factors, strict=True):
      expected = second_moment(rows[f"{name}{index}"])
      np.testing.assert_allclose(factor, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.promotes
def test_positions_of_a_dense_layer():
  """Further axes are positions: ``A`` sums over them, ``G`` averages."""
  model = nn.Dense(2, name="layer")
  x, targets = random_gradients([(EXAMPLES, 3, 4), (EXAMPLES, 3, 2)], 1)[0]
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]

  def loss(params):
    return jnp.sum((model.apply({"params": params}, x) - targets) ** 2) / EXAMPLES

  (factors,) = jitted_capture(loss, params).factors.values()
  ones = np.ones((EXAMPLES * 3, 1))
  inputs = np.concatenate([np.reshape(x, (-1, 4)), ones], axis=1)
  errors = np.reshape(model.apply({"params": params}, x) - targets, (-1, 2))
  np.testing.assert_allclose(factors.inputs, 3 * second_moment(inputs), rtol=1e-4)
  np.testing.assert_allclose(factors.outputs, second_moment(2 * errors), rtol=1e-4)


def explicit_patches(images, size, strides, dilation, padding):
  """``(N, T, offsets * channels)`` by loops over the output's positions."""
  images = np.pad(np.float64(images), [(0, 0), *padding, (0, 0)])
  reach = [d * (s - 1) + 1 for s, d in zip(size, dilation, strict=True)]
  positions = itertools.product(
    *(
      range(0, n - r + 1, s)
      for n, r, s in zip(images.shape[1:3], reach, strides, strict=True)
    )
  )
  windows = [
    images[:, i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]]
    for i, j in positions
  ]
  return np.stack(windows, axis=1).reshape(len(images), len(windows), -1)


GEOMETRIES = {
  "same": ({"padding": "SAME"}, ((1, 1), (0, 1))),
  "valid": ({"padding": "VALID", "strides": (2, 1)}, ((0, 0), (0, 0))),
  "dilated": (
    {"padding": ((2, 0), (1, 1)), "kernel_dilation": (2, 1), "use_bias": False},
    ((2, 0), (1, 1)),
  ),
}


@pytest.mark.promotes
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv_factors_are_those_of_explicit_patches(geometry):
  settings, padding = GEOMETRIES[geometry]
  model = nn.Conv(2, (3, 2), **settings)
  (images,) = random_gradients([(EXAMPLES, 6, 5, 3)], 1)[0]
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]

  def loss(params):
    return jnp.sum(model.apply({"params": params}, images) ** 2) / (2 * EXAMPLES)

  captured = jitted_capture(loss, params)
  (factors,) = captured.factors.values()
  patches = explicit_patches(
    images,
    (3, 2),
    settings.get("strides", (1, 1)),
    settings.get("kernel_dilation", (1, 1)),
    padding,
  )
  if "bias" in params:
    patches = np.concatenate([patches, np.ones((*patches.shape[:2], 1))], axis=2)
  matrix = [np.reshape(params[k], (-1, 2)) for k in ("kernel", "bias") if k in params]
  outputs = patches @ np.float64(np.concatenate(matrix))
  signals = outputs.reshape(-1, 2)  # the gradient of half a square
  positions = patches.shape[1]
  inputs = patches.reshape(EXAMPLES * positions, -1)
  kernel = inputs.T @ signals / EXAMPLES
  rows = params["kernel"].size // 2
  gradient = np.reshape(captured.gradients["kernel"], (-1, 2))
  np.testing.assert_allclose(gradient, kernel[:rows], rtol=1e-3, atol=1e-4)
  expected = positions * second_moment(inputs)
  np.testing.assert_allclose(factors.inputs, expected, rtol=1e-4, atol=1e-4)
  expected = second_moment(signals)
  np.testing.assert_allclose(factors.outputs, expected, rtol=1e-4, atol=1e-4)


SHAPES = {
  "conv": {"bias": (2,), "kernel": (1, 2, 2, 2)},
  "dense": {"bias": (2,), "kernel": (3, 2)},
  "norm": {"scale": (3,)},
  "plain": {"kernel": (2, 3)},
}
ORDERS = {"conv": (5, 2), "dense": (4, 2), "plain": (2, 3)}
DAMPING, MOMENTUM, EMA = 0.1, 0.8, 0.7


def random_factors(steps):
  shapes = {k: Factors((n, 2 * n), (m, 2 * m)) for k, (n, m) in ORDERS.items()}
  return [
    jax.tree.map(lambda columns: columns @ columns.T, tree)
    for tree in random_gradients(shapes, steps, is_leaf=_is_plain_tuple)
  ]


def _is_plain_tuple(node):
  return isinstance(node, tuple) and not isinstance(node, Factors)


def as_vector(tree, layer):
  """Row-major elements of the kernel with the bias as a last row."""
  names = [name for name in ("kernel", "bias") if name in SHAPES[layer]]
  return np.concatenate([np.float64(tree[layer][name]).ravel() for name in names])


def reference(gradients, factors, split, periods):
  """The directions of one layer from the dense, damped Kronecker product."""
  momentum, averages, entries = 0, [0, 0], 0
  for step, (gradient, new) in enumerate(zip(gradients, factors, strict=True)):
    momentum = MOMENTUM * momentum + gradient
    if step % periods[0] == 0:
      entries += 1
      averages = [
        EMA * old + (1 - EMA) * np.float64(n)
        for old, n in zip(averages, new, strict=True)
      ]
    if step % periods[1] == 0:
      inputs, outputs = (average / (1 - EMA**entries) for average in averages)
      ratio = (np.trace(inputs) / len(inputs)) / (np.trace(outputs) / len(outputs))
      pi = np.sqrt(ratio) if split == "trace" else 1.0
      share = 0.0 if split == "none" else np.sqrt(DAMPING)
      inputs = inputs + pi * share * np.eye(len(inputs))
      outputs = outputs + share / pi * np.eye(len(outputs))
      fisher = np.kron(inputs, outputs)
      if split == "none":
        fisher += DAMPING * np.eye(len(fisher))
    yield np.linalg.solve(fisher, momentum)


@pytest.mark.parametrize(
  ("split", "periods"),
  [("equal", (2, 3)), ("trace", (1, 2)), ("none", (2, 1))],
)
def test_directions_are_those_of_the_dense_fisher(split, periods):
  steps = 5
  gradients, factors = random_gradients(SHAPES, steps), random_factors(steps)
  tx = scale_by_kfac(DAMPING, split, MOMENTUM, EMA, *periods)
  found, _ = run(tx, gradients, factors=factors)
  for layer in ORDERS:
    vectors = [as_vector(tree, layer) for tree in gradients]
    expected = reference(vectors, [tree[layer] for tree in factors], split, periods)
    for updates, direction in zip(found, expected, strict=True):
      np.testing.assert_allclose(
        as_vector(updates, layer), direction, rtol=1e-3, atol=1e-4
      )
  momentum, _ = run(optax.trace(MOMENTUM), gradients)
  for updates, expected in zip(found, momentum, strict=True):
    chex.assert_trees_all_close(updates["norm"], expected["norm"], rtol=1e-6)


def test_factors_are_computed_in_the_updates_that_take_them_alone():
  gradients, factors = random_gradients(SHAPES, 1)[0], random_factors(1)[0]
  tx, computed = scale_by_kfac(factor_update_period=3), []

  def compute():
    jax.debug.callback(lambda: computed.append(1))
    return factors

  state = given = tx.init(gradients)
  for step in range(4):
    _, state = jax.jit(lambda s: tx.update(gradients, s, factors=compute))(state)
    _, given = tx.update(gradients, given, factors=factors)
    jax.effects_barrier()
    assert len(computed) == 1 + step // 3
  chex.assert_trees_all_close(state, given, rtol=1e-5)


@pytest.mark.promotes
@pytest.mark.parametrize("bias", [True, False])
def test_one_example_makes_the_factorization_exact(bias):
  """A linear model and one example: the Fisher matrix is the gradient's square."""
  model = nn.Dense(2, use_bias=bias)
  x, target = random_gradients([(1, 3), (1, 2)], 1)[0]
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]

  def loss(params):
    return jnp.sum((model.apply({"params": params}, x) - target) ** 2)

  captured = jitted_capture(loss, params)
  (factors,) = captured.factors.values()
  names = ("kernel", "bias")[: 1 + bias]
  gradient = np.concatenate([np.ravel(captured.gradients[name]) for name in names])
  np.testing.assert_allclose(
    np.kron(*factors), np.outer(gradient, gradient), rtol=1e-4, atol=1e-5
  )
  tx = scale_by_kfac(DAMPING, momentum=0.0, inverse_update_period=1)
  (updates,), _ = run(tx, [captured.gradients], factors=[captured.factors])
  damped = [np.float64(f) + np.sqrt(DAMPING) * np.eye(len(f)) for f in factors]
  expected = np.linalg.solve(np.kron(*damped), gradient)
  found = np.concatenate([np.ravel(updates[name]) for name in names])
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.promotes
def test_auxiliary_output_and_other_modules():
  """Batch norm has no factors, and its new statistics come back."""

  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.BatchNorm(use_running_average=False)(nn.Conv(2, (2, 2))(x))
      return nn.Dense(1, name="head")(x.mean((1, 2)))

  (images,) = random_gradients([(4, 3, 3, 1)], 1)[0]
  variables = jax.jit(Network().init)(jax.random.key(0), images)

  def loss(params, images):
    output, new = Network().apply(
      {**variables, "params": params}, images, mutable="batch_stats"
    )
    return jnp.mean(output**2), new

  captured = jitted_capture(loss, variables["params"], images, has_aux=True)
  differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
  expected = differentiate(variables["params"], images)
  chex.assert_trees_all_close(
    (captured.value, captured.gradients), expected, rtol=1e-4, atol=1e-7
  )
  assert set(captured.factors) == {"Conv_0", "head"}
  tx = scale_by_kfac()
  (updates,), _ = run(tx, [captured.gradients], factors=[captured.factors])
  chex.assert_trees_all_equal(updates["BatchNorm_0"], captured.gradients["BatchNorm_0"])


@pytest.mark.promotes
@pytest.mark.parametrize(
  ("layer", "shape", "message"),
  [
    (nn.Conv(2, (2, 2), feature_group_count=2), (1, 3, 3, 2), "one group"),
    (nn.Conv(2, (2, 2), padding="CIRCULAR"), (1, 3, 3, 2), "zero padding"),
    (
      nn.Conv(2, (2, 2), input_dilation=2, padding=1),
      (1, 3, 3, 2),
      "no input dilation",
    ),
    (nn.Conv(2, (2, 2)), (2, 1, 3, 3, 2), "one batch axis"),
    (nn.Sequential([nn.Dense(2, name="same")] * 2), (1, 2), "applied twice"),
  ],
)
def test_layers_without_factors_are_refused(layer, shape, message):
  x = jnp.ones(shape)
  params = layer.init(jax.random.key(0), x)["params"]
  with pytest.raises(ValueError, match=message):
    capture(lambda params: layer.apply({"params": params}, x).sum(), params)


def test_missing_factors_are_named():
  tx = scale_by_kfac()
  params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
  with pytest.raises(ValueError, match="Dense_0"):
    tx.update(params, tx.init(params), factors={})


@pytest.mark.parametrize("split", ["equal", "none"])
def test_inverse_of_a_fault_is_not_taken(split):
  tx = scale_by_kfac(split=split, layers=["dense"])
  gradients, (factors,) = random_gradients(SHAPES, 1), random_factors(1)
  broken = {"dense": factors["dense"]._replace(inputs=jnp.full((4, 4), jnp.nan))}
  (updates,), _ = run(tx, gradients, factors=[broken])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
