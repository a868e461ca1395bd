"""Scales of rows: none where a matrix is even, Adam's where it is not."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg.rows import row_scales


def scales(diagonals, order=None, trust=1.0):
  d = jnp.asarray(diagonals, jnp.float32)
  n = len(d) if order is None else order
  order = jnp.full(d.shape[1:], n, jnp.float32)
  mean = jnp.sum(d, axis=0) / n
  return np.asarray(row_scales(d, order, trust / jnp.where(mean > 0, mean, 1)))


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e15])
def test_even_rows_keep_their_scale(unit):
  """Ten of a hundred without any gradient, and others three times apart, are even."""
  d = np.where(np.arange(100) % 10 == 0, 0, np.geomspace(1, 9, 100))
  np.testing.assert_array_equal(scales(unit * d), 1)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e15])
def test_uneven_rows_are_scaled_as_adam_scales_them(unit):
  """On both sides of a matrix: by the root of the diagonal over its mean."""
  d = np.geomspace(1e-6, 1e6, 40)
  assert np.mean(np.sqrt(d)) ** 2 / np.mean(d) < 0.2
  np.testing.assert_allclose(
    scales(unit * d) ** 2, np.sqrt(np.mean(d) / (d + 1e-8 * np.mean(d))), rtol=1e-4
  )


def test_between_the_two_by_a_part_of_the_exponent():
  d = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 70.0])
  share = np.mean(np.sqrt(d)) ** 2 / np.mean(d)
  assert 0.25 < share < 0.4
  expected = (d / np.mean(d)) ** (-(0.4 - share) / 0.2 / 4)
  np.testing.assert_allclose(scales(d), expected, rtol=1e-4)


def test_matrices_of_a_batch_are_independent_and_padding_does_not_count():
  even, uneven = np.linspace(1, 2, 30), np.geomspace(1e-6, 1e6, 30)
  found = scales(np.stack([even, uneven], axis=1))
  np.testing.assert_array_equal(found[:, 0], 1)
  padded = np.concatenate([found.T, np.ones((2, 2))], axis=1)
  given = np.concatenate([np.stack([even, uneven]), np.zeros((2, 2))], axis=1).T
  np.testing.assert_allclose(scales(given, order=30)[:30], padded.T[:30], rtol=1e-6)


def test_rows_without_any_gradient_and_matrices_without_one():
  d = np.geomspace(1e-6, 1e6, 40)
  d[3] = 0
  assert np.all(np.isfinite(scales(d)))
  np.testing.assert_array_equal(scales(np.zeros(5)), 1)


def test_what_few_gradients_say_of_rows_is_not_believed():
  """As for the matrix itself: the diagonal is shrunk by as much."""
  d = np.geomspace(1e-6, 1e6, 40)
  np.testing.assert_array_equal(scales(d, trust=0.1), 1)
  assert np.all(np.abs(np.log(scales(d, trust=0.95))) <= np.abs(np.log(scales(d))))


def test_the_examples_of_the_documentation():
  """Three orders of variances are even; scales from 0.01 to 100 nearly are Adam's."""
  np.testing.assert_array_equal(scales(np.geomspace(1, 1000, 200)), 1)
  d = np.geomspace(1e-2, 1e2, 20) ** 2
  assert round(np.mean(np.sqrt(d)) ** 2 / np.mean(d), 2) == 0.21
  adam = np.sqrt(np.mean(d) / d)
  power = np.log(scales(d) ** 2) / np.log(adam)
  np.testing.assert_allclose(power, 0.95, atol=0.01)
