"""Sampled targets have the moments of the model's distribution and stop gradients."""

import jax
import jax.numpy as jnp
import numpy as np

import mbf_optax

KEY = jax.random.key(0)
COUNT = 20_000


def test_labels_follow_the_softmax():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.5, 0.3])), (COUNT, 3))
  labels = mbf_optax.sample_labels(logits, KEY)
  assert labels.shape == (COUNT,)
  assert jnp.issubdtype(labels.dtype, jnp.integer)
  np.testing.assert_allclose(np.bincount(labels) / COUNT, [0.2, 0.5, 0.3], atol=0.015)


def test_bernoulli_follows_the_sigmoid():
  targets = mbf_optax.sample_bernoulli(jnp.full(COUNT, 1.0, jnp.bfloat16), KEY)
  assert targets.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.mean(targets.astype(float)), 0.731, atol=0.015)


def test_half_precision_samples_without_ties():
  """Noise in bfloat16 coincides among many classes, and the first wins."""
  labels = mbf_optax.sample_labels(jnp.zeros((COUNT, 1000), jnp.bfloat16), KEY)
  np.testing.assert_allclose(np.mean(labels), 499.5, rtol=0.02)
  rare = mbf_optax.sample_bernoulli(jnp.full(10 * COUNT, -6.0, jnp.bfloat16), KEY)
  np.testing.assert_allclose(np.mean(rare.astype(float)), 0.00247, rtol=0.15)


def test_gaussian_has_mean_and_scale():
  targets = mbf_optax.sample_gaussian(jnp.full(COUNT, 3.0), KEY, scale=2.0)
  np.testing.assert_allclose([targets.mean(), targets.std()], [3, 2], atol=0.05)


def test_gaussian_targets_of_half_precision_are_wide():
  """bfloat16 has 128 distinct values of a normal deviate, and none beyond 2.9."""
  targets = mbf_optax.sample_gaussian(jnp.zeros(100_000, jnp.bfloat16), KEY)
  assert targets.dtype == jnp.float32
  assert len(np.unique(targets)) > 90_000
  assert 4 < np.abs(targets).max() < 6


def test_no_gradient_flows_through_the_samples():
  def loss(x):
    samples = mbf_optax.sample_gaussian(x, KEY) + mbf_optax.sample_bernoulli(x, KEY)
    return jnp.sum(samples)

  np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(4)), np.zeros(4))
