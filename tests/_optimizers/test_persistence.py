"""Persistence of known streams in closed form, by itself and inside ``mbf_adam``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._optimizers.persistence import (
  MEMORY,
  averaged,
  foretold,
  kappa_of,
  weight_of_the_next,
)

SHAPE, STEPS = (40, 30), 20
PARTITION = mbf_optax.flax_partition("shared")


def share(g, m_hat, stack_ndim=0, correction=0.3):
  """Of vectors in two pieces, the momentum before its correction."""
  c = jnp.float32(correction)
  g, m = jnp.asarray(g), c * jnp.asarray(m_hat)
  return foretold((g[:3], g[3:]), (m[:3], m[3:]), c, stack_ndim)


def vectors(seed=0, shape=SHAPE):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 4.0, -1.0, -0.25])
def test_the_foretold_share_of_parallel_gradients(ratio):
  """The shorter over the longer, with their sign."""
  g = jnp.asarray(vectors())
  expected = np.sign(ratio) * min(abs(ratio), 1 / abs(ratio))
  np.testing.assert_allclose(share(ratio * g, g), expected, rtol=1e-5)
  np.testing.assert_allclose(share(g, ratio * g), expected, rtol=1e-5)


def test_the_foretold_share_is_that_of_the_longer_vector():
  g, m = vectors(0), vectors(1) + 0.3 * vectors(0)
  expected = np.sum(g * m) / max(np.sum(g**2), np.sum(m**2))
  np.testing.assert_allclose(share(g, m), expected, rtol=1e-4)


def test_stacked_layers_have_shares_of_their_own():
  """Of vectors ``(n, *stack, *counted)``."""
  g, m = vectors(0, (4, 2, 3)), vectors(1, (4, 2, 3))
  found = share(jnp.asarray(g), jnp.asarray(m), 1)
  expected = [float(share(g[:, i], m[:, i])) for i in range(2)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-17, 1e-10, 1e10, 1e16])
def test_shares_do_not_depend_on_the_scale(scale):
  """As far as Adam's second moment reaches."""
  g = jnp.asarray(vectors()) * scale
  np.testing.assert_allclose(share(g, 0.5 * g), 0.5, rtol=1e-4)


def test_nothing_is_foretold_of_or_by_nothing():
  g, nothing = jnp.asarray(vectors()), jnp.zeros(SHAPE)
  for a, b in ((g, nothing), (nothing, g), (nothing, nothing), (g * jnp.inf, g)):
    assert share(a, b) == 0


def average_of(shares):
  average = jnp.float32(1)
  for k, share in enumerate(shares):
    average = averaged(average, jnp.float32(share), weight_of_the_next(jnp.int32(k)))
  return average


def test_persistence_is_a_moving_average_corrected_for_its_start():
  shares = np.random.default_rng(0).uniform(-1, 1, STEPS)
  for t in range(2, STEPS + 1):
    weights = MEMORY ** np.arange(t - 1)[::-1]
    expected = np.sum(weights * shares[1:t]) / np.sum(weights)
    np.testing.assert_allclose(average_of(shares[:t]), expected, atol=1e-6)


@pytest.mark.parametrize("said", [0.0, -1.0, 0.5])
def test_nothing_could_foretell_the_first_gradient(said):
  """Whatever is said about it, it is taken to persist."""
  assert average_of([said]) == 1


def test_the_second_gradient_takes_the_place_of_the_first():
  assert average_of([1.0, 0.0]) == 0


def test_persistence_still_moves_when_the_count_has_ended():
  assert weight_of_the_next(jnp.int32(2**31 - 1)) == pytest.approx(1 - MEMORY)


def test_persistence_is_clipped():
  np.testing.assert_array_equal(kappa_of(jnp.float32([-0.5, 0.5, 1.5])), [0, 0.5, 1])


@jax.jit
def kappas_of(gradients, b1):
  """Of a stream of gradients of one layer, step by step, as ``metrics`` has them."""
  tx = mbf_optax.scale_by_mbf_adam(
    b1=b1, partition=PARTITION, inverse_update_period=1000
  )

  def step(state, gradient):
    _, state = tx.update({"kernel": gradient}, state)
    layer = mbf_optax.metrics(state, partition=PARTITION)["kernel"]
    return state, (layer.persistence, layer.exponent)

  _, found = jax.lax.scan(step, tx.init({"kernel": gradients[0]}), gradients)
  return found


def stream(factors, noise=None):
  base = vectors()[None] if noise is None else noise
  return jnp.asarray(np.float32(factors)[:, None, None] * base)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_a_constant_gradient_persists(b1):
  kappas, exponents = kappas_of(stream(np.ones(STEPS)), b1)
  np.testing.assert_allclose(kappas, 1, rtol=1e-5)
  np.testing.assert_allclose(exponents, 0, atol=1e-2)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_an_alternating_gradient_does_not(b1):
  kappas, exponents = kappas_of(stream((-1.0) ** np.arange(STEPS)), b1)
  np.testing.assert_array_equal(kappas, [1] + (STEPS - 1) * [0])
  np.testing.assert_array_equal(exponents, 1 - kappas)


def test_noise_does_not():
  noise = np.random.default_rng(1).normal(size=(STEPS, *SHAPE))
  kappas, _ = kappas_of(stream(np.ones(STEPS), noise), 0.9)
  assert kappas[0] == 1
  assert np.all(kappas[1:] < 0.1)


def test_a_gradient_of_which_half_is_noise_persists_by_its_other_half():
  """``<g, m^> = |s|^2`` and ``|g|^2 = 2 |s|^2``, ``m^`` has averaged the noise."""
  noise = np.random.default_rng(1).normal(size=(10 * STEPS, *SHAPE))
  gradients = stream(np.ones(10 * STEPS), vectors()[None] + noise)
  kappas, exponents = kappas_of(gradients, 0.98)
  np.testing.assert_allclose(np.mean(kappas[5 * STEPS :]), 0.5, atol=0.03)
  np.testing.assert_allclose(exponents, 1 - np.sqrt(kappas), atol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_geometric_gradient_persists_by_its_ratio(ratio):
  kappas, _ = kappas_of(stream(ratio ** np.arange(STEPS)), 0.0)
  np.testing.assert_allclose(kappas, [1] + (STEPS - 1) * [0.5], rtol=1e-5)


def test_persistence_forgets_by_a_tenth_a_step():
  """Two steps foretold, and then none."""
  kappas, _ = kappas_of(stream([1.0] * 3 + [0.0] * 17), 0.0)
  past = 1 - MEMORY**2
  expected = [past * MEMORY**i / (1 - MEMORY ** (2 + i)) for i in range(18)]
  np.testing.assert_allclose(kappas[2:], expected, rtol=1e-4)
