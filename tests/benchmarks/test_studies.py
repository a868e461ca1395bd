"""The studies of single matrices, directions, graphs and texts."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from benchmarks.baselines import common, scale_by_bdf
from benchmarks.paper import data, graph, tasks
from benchmarks.paper.experiment import Options
from benchmarks.paper.studies import fisher, following, idealized
from benchmarks.paper.studies.networks import SimpleCnn, SmallNetwork
from examples.data import Data
from mbf_optax import flax_partition

QUICK = Options("quick")


@pytest.fixture(autouse=True)
def _fast_compilation():
  """Nothing here is timed, and most of the time would be XLA's optimizations."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.promotes
@pytest.mark.parametrize(
  "name",
  [
    "graph",
    "heatmaps",
    "theorem",
    pytest.param("cosine", marks=pytest.mark.slow),
    pytest.param("sequence", marks=pytest.mark.slow),
  ],
)
def test_experiment_runs(name, tmp_path):
  experiment = importlib.import_module(f"benchmarks.paper.{name}")
  report = experiment.run(QUICK._replace(work=tmp_path))
  assert "NaN" not in report.text
  assert report.text.count("|") > 20
  pictures = ["loss", "exponents"] if name in ("graph", "sequence") else [name]
  assert list(report.figures) == pictures


@pytest.fixture
def small_problem():
  rng = np.random.default_rng(0)
  network = idealized.Network((4, 3), scale=3.0)
  x, y = rng.normal(size=(6, 5)), rng.normal(size=6)
  with jax.enable_x64(True):
    yield network, network.init(jax.random.key(0), 5), jnp.asarray(x), jnp.asarray(y)


def test_direction_is_that_of_the_explicit_fisher(small_problem):
  """Outer products of one output's gradients at a time, neuron by neuron."""
  network, params, x, y = small_problem
  expected = {}
  gradient_of = jax.jit(jax.grad(lambda p, row: network(p, row[None])[0]))
  gradients = [gradient_of(params, row) for row in x]
  residual = network(params, x) - y
  for layer, own in params.items():
    size = own["kernel"].shape[0] + 1
    expected[layer] = {"kernel": np.zeros(own["kernel"].shape), "bias": []}
    for neuron in range(own["kernel"].shape[1]):
      block, gradient = np.zeros((size, size)), np.zeros(size)
      for g, r in zip(gradients, residual, strict=True):
        column = np.append(g[layer]["kernel"][:, neuron], g[layer]["bias"][neuron])
        block += np.outer(column, column)
        gradient += column * r
      step = np.linalg.solve(block + 0.01 * np.eye(size), gradient)
      expected[layer]["kernel"][:, neuron] = step[:-1]
      expected[layer]["bias"].append(step[-1])
  step = jax.jit(idealized.direction, static_argnums=0)
  found = step(lambda p: network(p, x) - y, params, residual, 0.01)
  for path, value in common.flatten(found).items():
    layer, name = path.split("/")
    np.testing.assert_allclose(value, expected[layer][name], rtol=1e-8)


def test_linear_network_arrives_as_fast_as_linear_theory_says():
  """One neuron is one mini-block: every step removes ``1 - (1 - eta)^2``."""
  rng = np.random.default_rng(1)
  case = idealized.Case(
    "linear",
    idealized.Network(()),
    rng.normal(size=(4, 6)),
    rng.normal(size=4),
    damping=1e-9,
  )
  with jax.enable_x64(True):
    outcome = idealized.measure(case, steps=8)
  assert outcome.blocks == 1
  np.testing.assert_allclose(outcome.losses, 0.25 ** np.arange(9), rtol=1e-6)
  assert outcome.constant < 1e-6
  assert outcome.excess == pytest.approx(0.25 / (1 - outcome.learning_rate))
  assert outcome.removed == pytest.approx(0.75)


def test_ascent_in_the_ball_finds_the_largest_curvature():
  """One example's Jacobian is a row, whose change is the Hessian's product."""
  network = idealized.Network((3,))
  inputs = np.random.default_rng(3).normal(size=(1, 2))
  with jax.enable_x64(True):
    x = jnp.asarray(inputs)
    start = network.init(jax.random.key(0), 2)
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    hessian = jax.hessian(lambda v: network(unravel(v), x)[0])(flat)
    key = jax.random.key(1)
    found = idealized.worst_change(network, start, x, 1e-5, key, rounds=200)
  largest = np.abs(np.linalg.eigvalsh(hessian)).max()
  np.testing.assert_allclose(found, 1e-5 * largest, rtol=1e-3)


def test_too_many_examples_have_singular_grams():
  rng = np.random.default_rng(2)
  x, y = rng.normal(size=(9, 3)), rng.normal(size=9)
  with jax.enable_x64(True):
    outcome = idealized.measure(idealized.Case("", idealized.Network(()), x, y), 60)
  assert outcome.smallest == 0
  assert outcome.excess > 1


def test_share_of_a_block_diagonal_matrix():
  blocks = scipy.linalg.block_diag(np.full((2, 2), -3.0), np.full((3, 3), 2.0))
  found = fisher.share(blocks, np.array([0, 0, 1, 1, 1]))
  assert found.absolute == found.squared == 1
  assert found.off_absolute == found.off_squared == 1
  assert found.entries == 13 / 25
  assert found.off_entries == 8 / 20


def test_share_of_a_constant_matrix_is_that_of_its_entries():
  found = fisher.share(np.full((6, 6), -0.5), np.array([0, 1, 2, 0, 1, 2]))
  assert found.absolute == pytest.approx(found.entries) == pytest.approx(1 / 3)
  assert found.squared == pytest.approx(1 / 3)
  assert found.off_absolute == pytest.approx(found.off_entries)
  assert found.contrast == pytest.approx(1)


def test_share_by_hand():
  matrix = np.array([[4.0, -2, 1], [-2, 4, 0], [1, 0, 4]])
  found = fisher.share(matrix, np.array([0, 0, 1]))
  assert found.absolute == pytest.approx(16 / 18)
  assert found.squared == pytest.approx(56 / 58)
  assert found.off_absolute == pytest.approx(4 / 6)
  assert found.off_squared == pytest.approx(8 / 10)
  assert found.contrast == pytest.approx(2 / 0.5)


@pytest.mark.promotes
def test_gradients_of_kernels_are_those_of_single_examples():
  """The products of patches and derivatives against one backward pass an example."""
  model = SimpleCnn((3, 4), hidden=5, classes=3)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  y = jnp.array([0, 2])
  params = jax.jit(model.init)(jax.random.key(1), x)["params"]

  def loss(params, x, y):
    logits = model.apply({"params": params}, x[None])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[None])[0]

  gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, x, y)
  kernels = gradients["Conv_1"]["kernel"][..., jnp.array([2, 0]), :]
  expected = kernels[..., jnp.array([1, 3])].transpose(0, 4, 3, 1, 2).reshape(2, -1)
  found = fisher.convolution_rows(model, 1, (2, 0), (1, 3))(params, x, y)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.promotes
def test_empirical_fisher_of_a_dense_layer_is_a_mean_of_outer_products():
  model = SmallNetwork((3, 2))
  x = jax.random.normal(jax.random.key(0), (4, 5))
  y = jnp.array([0, 1, 1, 0])
  params = model.init(jax.random.key(1), x)["params"]
  expected = np.zeros((8, 8))
  for row, label in zip(x, y, strict=True):
    hidden = np.tanh(np.append(row, 1) @ np.asarray(params["Dense_0"]["kernel"]))
    logits = hidden @ np.asarray(params["Dense_1"]["kernel"])
    error = np.exp(logits) / np.exp(logits).sum() - np.eye(2)[label]
    vector = np.outer(error, np.append(hidden, 1)).ravel()
    expected += np.outer(vector, vector) / 4
  batches = [(x[:2], y[:2]), (x[2:], y[2:])]
  rows = fisher.dense_rows(model, "Dense_1")
  found = fisher.empirical_fisher(rows, params, batches)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.fixture
def followed():
  """A tiny classifier, and BDF followed by itself and by a turned copy."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
  images = Data(x, y, x, y)
  task = tasks.classification("tiny", SmallNetwork((4, 3, 3)), images, 6, 4)
  negative = optax.chain(scale_by_bdf(1e-2), optax.scale(-0.1))
  company = following.Company(
    following.Method(scale_by_bdf(1e-2)),
    {
      "itself": following.Method(scale_by_bdf(1e-2)),
      "backwards": following.Method(negative),
      "sgd": following.Method(optax.trace(0.9)),
    },
  )
  follow = following.follower(task, lambda damping: company, ["Dense_1", "Dense_2"])
  return follow(1.0, 1e-3)


@pytest.mark.promotes
def test_cosine_with_itself_is_one(followed):
  np.testing.assert_allclose(followed.cosines["itself"], np.ones((4, 2)), rtol=1e-5)
  np.testing.assert_allclose(followed.cosines["backwards"], -np.ones((4, 2)), rtol=1e-5)
  assert (np.abs(followed.cosines["sgd"]) < 0.9999).any()
  assert followed.losses[-1] != followed.losses[0]


@pytest.mark.promotes
def test_alignment_without_noise_is_that_of_the_optimizer():
  """A task without dropout has one gradient, which SGD follows and Adam does not."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3
  images = Data(x, y, x, y)
  task = tasks.classification("tiny", SmallNetwork((4, 3)), images, 6, 2)
  found = following.alignment(task, optax.sgd(0.1), steps=3, every=2, draws=2)
  (measured,) = found
  assert measured.step == 1
  for cosine in (*measured.update.values(), *measured.gradient.values()):
    assert cosine == pytest.approx(1, rel=1e-5)
  (measured,) = following.alignment(task, optax.adam(0.1), steps=2, every=2, draws=2)
  assert all(0 < cosine < 0.999 for cosine in measured.update.values())


def test_cosines_of_known_vectors():
  one = {"a": {"kernel": jnp.array([[3e-30]]), "bias": jnp.array([4e-30])}}
  other = {"a": {"kernel": jnp.array([[1e30]]), "bias": jnp.array([0.0])}}
  np.testing.assert_allclose(following.cosines(one, other)["a"], 0.6, rtol=1e-6)


def test_adjacency_is_that_of_a_dense_graph():
  found = data.cora(QUICK)
  dense = np.eye(len(found.labels))
  for one, other in found.edges:
    dense[one, other] = dense[other, one] = 1
  root = np.diag(dense.sum(1) ** -0.5)
  x = np.random.default_rng(0).normal(size=(len(dense), 2)).astype(np.float32)
  product = graph.normalized_adjacency(found).times(jnp.asarray(x), len(dense))
  np.testing.assert_allclose(product, root @ dense @ root @ x, rtol=1e-4, atol=1e-5)
  words = np.eye(found.features.shape[1], dtype=np.float32)
  shares = graph.sparse_features(found).times(jnp.asarray(words), len(dense))
  expected = found.features / found.features.sum(1, keepdims=True)
  np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_recurrent_layers_are_read_neuron_by_neuron():
  """Each of a GRU's six matrices is a dense layer of its own, with its own bias."""
  network = nn.RNN(nn.GRUCell(5))
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
  readings = {r.path: r for r in flax_partition()(shapes["params"])}
  gates = [path.split("/")[-2] for path in readings]
  assert gates == ["hn", "hr", "hz", "in", "ir", "iz"]
  for path, reading in readings.items():
    gate = path.split("/")[-2]
    inputs = 5 if gate.startswith("h") else 3
    assert (reading.bias_path is None) == (gate in ("hr", "hz"))
    assert reading.block_size == inputs + (reading.bias_path is not None)
    assert (reading.blocks, reading.layer.block_axes) == (5, (0,))
