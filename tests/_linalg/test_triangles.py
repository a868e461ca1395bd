"""Packed symmetric matrices against their dense counterparts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import triangles
from tests._linalg import inverses

RNG = np.random.default_rng(0)


@jax.jit
def invert(matrices):
  packed = triangles.inverse(triangles.pack(jnp.moveaxis(matrices, 0, -1)))
  return jnp.moveaxis(triangles.unpack(packed), -1, 0)


@pytest.mark.parametrize("condition", inverses.CONDITIONS)
@pytest.mark.parametrize("n", [1, 2, 9, 25, 64])
def test_float32_is_within_twice_of_lapack(n, condition):
  inverses.within_twice_of_lapack(invert, n, condition)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_float64(n):
  inverses.exact_in_float64(invert, n)


@pytest.mark.parametrize("n", [9, 40])
def test_huge_and_tiny(n):
  inverses.right_at_any_scale(invert, n)


@pytest.mark.parametrize("n", [9, 40])
def test_damped_rank_deficient(n):
  inverses.right_where_damping_alone_fills_the_rank(invert, n)


@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("fault", inverses.FAULTS)
def test_a_bad_matrix_is_marked_and_leaves_the_others_alone(n, fault):
  inverses.marks_a_bad_matrix_alone(invert, n, fault)


def invert_straight(matrices):
  """The code for CUDA, step by step: as one program it compiles slowly on a CPU."""
  packed = triangles.pack(jnp.moveaxis(matrices, 0, -1))
  return jnp.moveaxis(triangles.unpack(triangles._straight(packed)), -1, 0)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_straight_line_code_is_as_accurate_as_the_loop(n):
  inverses.exact_in_float64(invert_straight, n)
  for condition in inverses.CONDITIONS:
    inverses.within_twice_of_lapack(invert_straight, n, condition)


@pytest.mark.parametrize("fault", inverses.FAULTS)
def test_straight_line_code_marks_a_bad_matrix_alone(fault):
  inverses.marks_a_bad_matrix_alone(invert_straight, 9, fault)


def test_straight_line_code_is_for_one_batch():
  """On a mesh every layer would have a copy of it."""
  batch = jax.ShapeDtypeStruct((triangles.packed_size(3), 5), jnp.float32)

  def loops(packed):
    traced = jax.jit(triangles.inverse).trace(packed)
    return traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.while")

  assert loops(batch) == 0
  assert loops([batch, batch]) == 1


def symmetric(n, *batch):
  matrix = RNG.normal(size=(n, n, *batch)).astype(np.float32)
  return matrix + np.swapaxes(matrix, 0, 1)


@pytest.mark.parametrize("n", [1, 2, 9, 25])
def test_pack_and_unpack(n):
  matrix = symmetric(n, 3, 2)
  triangle = triangles.pack(jnp.asarray(matrix))
  assert triangle.shape == (triangles.packed_size(n), 3, 2)
  assert triangles.unpacked_size(len(triangle)) == n
  np.testing.assert_array_equal(triangles.unpack(triangle), matrix)


@pytest.mark.parametrize("n", [1, 2, 9, 25])
def test_products(n):
  matrix, vector = symmetric(n, 5), RNG.normal(size=(n, 5)).astype(np.float32)
  triangle = triangles.pack(jnp.asarray(matrix))
  expected = np.einsum("ijb,jb->ib", matrix, vector)
  np.testing.assert_allclose(
    triangles.matvec(triangle, jnp.asarray(vector)), expected, rtol=1e-4, atol=1e-4
  )
  outer = triangles.unpack(triangles.outer(jnp.asarray(vector)))
  np.testing.assert_allclose(outer, vector[:, None] * vector[None], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 9, 16])
def test_inverse_factors_and_their_products(n):
  matrix = np.einsum("ijb,kjb->ikb", *[symmetric(n, 5)] * 2) + np.eye(n)[:, :, None]
  factor = triangles.inverse_factor(triangles.pack(jnp.asarray(matrix, jnp.float32)))
  cholesky = np.linalg.cholesky(np.moveaxis(matrix, -1, 0))
  expected = np.moveaxis(np.linalg.inv(cholesky), 0, -1)
  lower = np.tril(np.ones((n, n)))[:, :, None]
  np.testing.assert_allclose(
    triangles.unpack(factor) * lower, expected, rtol=1e-3, atol=1e-4
  )
  vector = RNG.normal(size=(n, 5)).astype(np.float32)
  for function, subscripts in (
    (triangles.lower_matvec, "ijb,jb->ib"),
    (triangles.transposed_lower_matvec, "jib,jb->ib"),
  ):
    product = np.einsum(subscripts, expected, vector)
    given = function(factor, jnp.asarray(vector))
    np.testing.assert_allclose(given, product, rtol=1e-3, atol=1e-3)


def test_a_matrix_that_is_not_positive_definite_has_no_factor():
  good, bad = np.eye(3), np.diag([1.0, -1.0, 1.0])
  matrices = jnp.asarray(np.stack([good, bad], -1), jnp.float32)
  factors = triangles.inverse_factor(triangles.pack(matrices))
  assert np.isfinite(factors[:, 0]).all()
  assert np.isnan(factors[:, 1]).any()


@pytest.mark.parametrize("n", [1, 4])
def test_diagonal(n):
  matrix = symmetric(n, 3)
  triangle = triangles.pack(jnp.asarray(matrix))
  diagonal = np.einsum("iib->ib", matrix)
  np.testing.assert_array_equal(triangles.diagonal(triangle), diagonal)


def test_identity():
  identity = triangles.unpack(triangles.identity(3, (2,), jnp.float32))
  np.testing.assert_array_equal(
    identity, np.broadcast_to(np.eye(3)[..., None], (3, 3, 2))
  )
