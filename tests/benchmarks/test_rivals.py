"""The methods of the comparisons take what is searched, and what they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks.baselines import Factors, capture
from benchmarks.paper import (
  autoencoder,
  cnn,
  frequencies,
  graft,
  graph,
  low_rank,
  problems,
  rivals,
  sequence,
  steps,
  vision,
)
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import empirical, with_sampled
from benchmarks.paper.optimizers import product, with_factors
from benchmarks.paper.training import Trainer

QUICK = Options(scale="quick")
pytestmark = pytest.mark.promotes


@pytest.fixture(scope="module")
def task():
  return problems.autoencoder("curves", QUICK)


@pytest.mark.parametrize(
  "optimizers",
  [
    autoencoder._optimizers("cpu"),
    cnn._optimizers("cpu", "resnet", cnn._cpu()),
    frequencies.optimizers("mnist", "cpu"),
    graft._optimizers("cpu", "resnet"),
    graph.optimizers(graph.SIZES["cpu"]),
    low_rank._optimizers("cpu", "narrow"),
    low_rank._optimizers("cpu", "wide"),
    sequence.optimizers(sequence.SIZES["cpu"]),
  ],
  ids=["autoencoder", "cnn", "frequencies", "graft", "graph", "narrow", "wide", "text"],
)
def test_optimizers_that_the_quick_scale_leaves_out_take_their_settings(optimizers):
  """Traced, as in a training, but not compiled."""
  dense = {"Dense_0": {"bias": jnp.zeros(5), "kernel": jnp.zeros((4, 5))}}
  both = {**dense, "Conv_0": {"kernel": jnp.zeros((3, 3, 2, 5))}}
  factors = {"Dense_0": Factors(jnp.eye(5), jnp.eye(5))}

  def updated(params, build, setting):
    tx = optax.with_extra_args_support(build(**setting))
    return tx.update(params, tx.init(params), params, factors=factors)[0]

  for name, optimizer in optimizers.items():
    setting = {key: jnp.float32(value) for key, value in optimizer.settings[0].items()}
    params = both if name.endswith("by kernel") else dense
    update = functools.partial(updated, params, optimizer.build)
    found = jax.eval_shape(update, setting)
    shapes = jax.tree.map(jnp.shape, found)
    assert shapes == jax.tree.map(jnp.shape, params), name


def test_paper_scale_has_the_papers_epochs_and_decays():
  for name, batches in (("resnet", 351), ("vgg16", 351), ("vgg11", 515)):
    found = [
      (length.steps / batches, length.decay_every / batches)
      for length in vision.lengths(name, "paper")
    ]
    mini_block = (200, 60) if name == "resnet" else (150, 50)
    assert found == [(200, 40), mini_block, (100, 80 if name == "resnet" else 60)]


def test_rates_fall_to_a_tenth_after_every_so_many_steps():
  tx = vision.decaying(optax.sgd, 2)(learning_rate=1.0)
  one = jnp.ones(())
  state, moved = tx.init(one), []
  for _ in range(5):
    update, state = tx.update(one, state)
    moved.append(update)
  np.testing.assert_allclose(moved, [-1, -1, -0.1, -0.1, -0.01], rtol=1e-5)


def test_trueness_takes_both_gradients_from_one_forward_pass(task):
  variables = task.init(jax.random.key(0))
  batch, key = task.train[:8], jax.random.key(3)
  value, _, gradient, extra = with_sampled(task, variables, batch, key)
  forward_key, _ = jax.random.split(key)
  expected = empirical(task, variables, batch, forward_key)
  sampled = jax.grad(lambda p: task.sampled_loss({"params": p}, batch, key))(
    variables["params"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    (value, gradient, extra["curvature_gradients"]),
    (expected[0], expected[2], sampled),
  )


def test_muons_two_kinds_of_weights_shrink_alike():
  setting = {"learning_rate": 0.3, "other_learning_rate": 0.01, "shrinkage": 0.02}
  tx = rivals.optimizer("muon", [setting]).build(**setting)
  params = {"Dense_0": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_allclose(leaf, -0.02, rtol=1e-5)


def test_kfac_starts_from_the_mean_factors_of_a_pass(task):
  optimizer = rivals.optimizer("kfac (1, 20), warm", product(learning_rate=[0.1]))
  state = Trainer(task, optimizer, optimizer.settings, (3,)).start(1).carry.state[0]
  np.testing.assert_array_equal(state.weight, [[1.0]])
  rows = task.train[steps.batch_rows(task, 3, 0, 40).ravel()]
  inputs = np.hstack([rows.reshape(len(rows), -1), np.ones((len(rows), 1))])
  found = state.factors["Dense_0"].inputs[0, 0]
  np.testing.assert_allclose(found, inputs.T @ inputs / len(rows), atol=1e-5)


def test_shampoo_starts_from_the_mean_moments_of_a_pass(task):
  optimizer = rivals.optimizer("shampoo (1, 20), warm", product(learning_rate=[0.1]))
  start = Trainer(task, optimizer, optimizer.settings, (3,)).start(1).carry
  state, variables = jax.tree.map(lambda x: x[0, 0] if x.ndim else x, start)[::-1]
  np.testing.assert_array_equal(state[0].weight, 1.0)
  loss = lambda p, rows: task.loss({"params": p}, task.train[rows], None)[0]  # noqa: E731
  gradients = [
    jax.grad(loss)(variables["params"], rows)["Dense_0"]["kernel"]
    for rows in steps.batch_rows(task, 3, 0, 40)
  ]
  moments = np.mean([g @ g.T for g in gradients], 0)
  found = state[0].statistics["Dense_0/kernel"][0]
  np.testing.assert_allclose(found, moments, rtol=1e-4, atol=1e-8)


def test_shrinkage_and_ratio_are_what_the_rate_makes_of_them():
  settings = [{"ratio": 0.1, "damping": 0.5, "shrinkage": 0.01}]
  tx = rivals.optimizer("mbf", settings).build(**settings[0])
  one = {"kernel": jnp.ones((2, 2))}
  zero = jax.tree.map(jnp.zeros_like, one)
  updates, _ = tx.update(zero, tx.init(one), one)
  np.testing.assert_allclose(updates["kernel"], -0.01, rtol=1e-5)
  updates, _ = tx.update(one, tx.init(one), zero)
  alone = mbf_optax.mbf(0.1 * 0.5, 0.5)
  expected, _ = alone.update(one, alone.init(one), zero)
  np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-5)


def test_kfacs_gradient_is_the_losss_and_its_factors_are_of_sampled_targets():
  task = problems.convnet(QUICK)
  variables = task.init(jax.random.key(0))
  batch = jax.tree.map(lambda x: x[:8], task.train)
  key = jax.random.key(3)

  def both(params):
    value, _, gradient, extra = with_factors(task, {"params": params}, batch, key)
    return value, gradient, extra["factors"]()

  value, gradient, factors = jax.jit(both)(variables["params"])
  expected = jax.value_and_grad(lambda p: task.loss({"params": p}, batch, key)[0])(
    variables["params"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    (value, gradient),
    expected,
  )
  sampled = capture(
    lambda p: task.sampled_loss({"params": p}, batch, key), variables["params"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    factors,
    sampled.factors,
  )
