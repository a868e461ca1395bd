"""Symmetric products, and the parts that a wide matrix is kept in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import products
from mbf_optax._optimizers.faults import without_faults


@pytest.mark.parametrize(
  "shape", [(7, 3), (576, 90), (577, 200), (2, 1200, 400), (1300, 440), (1800, 80)]
)
def test_symmetric_product(shape):
  columns = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  product = np.asarray(products.symmetric_product(jnp.asarray(columns)))
  np.testing.assert_array_equal(product, np.swapaxes(product, -1, -2))
  expected = columns @ np.swapaxes(columns, -1, -2)
  np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 3), (200, 577), (2, 400, 1200), (80, 1800)])
def test_gram(shape):
  rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  product = products.gram(jnp.asarray(rows))
  expected = np.swapaxes(rows, -1, -2) @ rows
  np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-4)


def test_mean_product_is_the_mean_over_the_columns_up_to_the_largest_gradients():
  columns = without_faults(jnp.full((2, 3, 40), 1e16))
  assert jnp.all(columns > 0)
  product = np.asarray(products.mean_product(columns))
  np.testing.assert_allclose(product, np.full((2, 3, 3), 1e32), rtol=1e-5)


def test_traces():
  matrices = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
  expected = np.trace(matrices, axis1=-2, axis2=-1)
  np.testing.assert_allclose(
    products.traces(jnp.asarray(matrices)), expected, rtol=1e-5
  )


def rows_and_symmetric() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  matrices = rng.normal(size=(2, 3, 5, 5)).astype(np.float32)
  rows = rng.normal(size=(2, 3, 1, 5)).astype(np.float32)
  return rows, matrices + np.swapaxes(matrices, -1, -2)


def test_rows_are_multiplied_by_symmetric_matrices():
  rows, symmetric = rows_and_symmetric()
  found = products.rows_times(jnp.asarray(rows), jnp.asarray(symmetric))
  np.testing.assert_allclose(found, rows @ symmetric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "count"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_a_row_is_multiplied_in_a_product_on_a_cpu_and_in_a_sum_elsewhere(
  platform, count
):
  """Only a CPU has no fast code for a sum that is fused with what it is for."""
  lower = jax.jit(products.rows_times).trace(*rows_and_symmetric()).lower
  text = lower(lowering_platforms=(platform,)).as_text()
  assert text.count("stablehlo.dot_general") == count
  assert text.count("stablehlo.reduce(") == 1 - count


@pytest.mark.parametrize(("n", "parts", "size"), [(7, 1, 8), (7, 3, 3), (6, 2, 3)])
def test_rows_are_split_and_joined(n, parts, size):
  columns = np.random.default_rng(0).normal(size=(2, n, 4)).astype(np.float32)
  split = np.asarray(products.split_rows(jnp.asarray(columns), parts, size))
  assert split.shape == (2, parts, size, 4)
  flat = split.reshape(2, parts * size, 4)
  np.testing.assert_array_equal(flat[:, :n], columns)
  assert not flat[:, n:].any()
  np.testing.assert_array_equal(products.join_rows(jnp.asarray(split), n), columns)


def test_products_of_parts_with_their_matrices():
  rng = np.random.default_rng(1)
  matrices, columns = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 5))
  given = products.apply(*(jnp.asarray(x, jnp.float32) for x in (matrices, columns)))
  np.testing.assert_allclose(given, matrices @ columns, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_products_have_the_precision_that_is_set_around_them(precision):
  x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
  for function in (
    products.symmetric_product,
    products.gram,
    lambda x: products.apply(x, x),
  ):
    with jax.default_matmul_precision(precision):
      text = jax.jit(function).lower(x).as_text()
    assert f"precision = [{precision.upper()}, {precision.upper()}]" in text
