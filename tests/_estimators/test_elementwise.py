"""Blocks of one element: with Adam's root, and without it."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import mbf_optax
from mbf_optax._estimators.table import estimator_of
from mbf_optax._partition.layer import Layer, read


def after(kind, gradient, ema=0.5):
  estimator = estimator_of(read("scale", (len(gradient),), Layer((), kind)))
  state = estimator.init(jnp.float32)
  state = estimator.accumulate(
    state, estimator.entry([jnp.asarray(gradient)[None]]), jnp.float32(ema)
  )
  return estimator, state


def plus(shift):
  def regularize(spectrum):
    ones = jnp.ones_like(spectrum.mean_diagonal)
    return 2 * ones, shift * ones

  return regularize


def test_rms_divides_by_the_root_and_is_zero_where_nothing_was_seen():
  estimator, state = after("rms", np.float32([3, 0]))
  given = jnp.asarray([[6.0, 6.0]])
  (found,) = estimator.precondition(state, [given], plus(0.1))
  np.testing.assert_allclose(found, [[6 / 3, 0]], rtol=1e-5)


def test_inverse_divides_by_the_damped_moment():
  estimator, state = after("inverse", np.float32([3, 0]))
  given = jnp.asarray([[6.0, 6.0]])
  (found,) = estimator.precondition(state, [given], plus(0.1))
  np.testing.assert_allclose(found, [[6 / 9.1, 60]], rtol=1e-5)
  (undamped,) = estimator.precondition(state, [given], plus(0.0))
  np.testing.assert_allclose(undamped, [[6 / 9, 0]], rtol=1e-5)


def test_second_moments_of_complex_gradients_are_real():
  estimator, state = after("rms", np.complex64([3 + 4j, 1j]))
  np.testing.assert_allclose(state.second_moment, [[12.5, 0.5]], rtol=1e-6)
  assert state.second_moment.dtype == jnp.float32
  (found,) = estimator.precondition(state, [jnp.asarray([[5j, 2j]])], plus(0.0))
  np.testing.assert_allclose(found, [[1j, 2j]], rtol=1e-5)


def test_operations_are_those_of_a_few_passes():
  for kind, passes in (("rms", 6), ("inverse", 5)):
    estimator = estimator_of(read("scale", (7,), Layer((), kind)))
    assert estimator.operations() == (passes * 7, 0, 0)


@functools.cache
def one_element_step():
  partition = mbf_optax.flax_partition(overrides=[("kernel", "conv")])

  @jax.jit
  def step(gradients, state, hyper):
    tx = mbf_optax.scale_by_mbf(
      curvature_update_period=1, inverse_update_period=1, partition=partition, **hyper
    )
    return tx.update(gradients, state)

  return mbf_optax.scale_by_mbf(partition=partition).init, step


values = st.floats(-10, 10, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  st.lists(st.lists(values, min_size=6, max_size=6), min_size=1, max_size=5),
  st.floats(0.05, 10),
  st.floats(0, 0.95),
  st.floats(0, 0.95),
)
def test_blocks_of_one_element_are_adam_without_its_root(rows, damping, mu, beta):
  """``m / (G / c + lambda)``: kernels with one offset, and biases of convolutions."""
  init, step = one_element_step()
  hyper = {"damping": damping, "momentum": mu, "curvature_ema": beta}
  hyper = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
  state = init({"kernel": jnp.zeros((1, 1, 2, 2)), "bias": jnp.zeros(2)})
  m = statistic = np.zeros(6)
  for count, row in enumerate(np.asarray(rows)):
    gradients = {
      "kernel": jnp.asarray(row[:4].reshape(1, 1, 2, 2), jnp.float32),
      "bias": jnp.asarray(row[4:], jnp.float32),
    }
    updates, state = step(gradients, state, hyper)
    m = mu * m + row
    statistic = beta * statistic + (1 - beta) * row**2
    expected = m / (statistic / (1 - beta ** (count + 1)) + damping)
    given = np.concatenate([np.ravel(updates["kernel"]), updates["bias"]])
    np.testing.assert_allclose(given, expected, rtol=2e-4, atol=1e-4)
