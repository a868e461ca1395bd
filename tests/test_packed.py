"""Packed symmetric matrices against their dense counterparts."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax import packed

RNG = np.random.default_rng(0)


def symmetric(n, *batch):
  matrix = RNG.normal(size=(n, n, *batch)).astype(np.float32)
  return matrix + np.swapaxes(matrix, 0, 1)


@pytest.mark.parametrize("n", [1, 2, 9, 25])
def test_pack_and_unpack(n):
  matrix = symmetric(n, 3, 2)
  triangle = packed.pack(jnp.asarray(matrix))
  assert triangle.shape == (packed.packed_size(n), 3, 2)
  assert packed.unpacked_size(len(triangle)) == n
  np.testing.assert_array_equal(packed.unpack(triangle), matrix)


@pytest.mark.parametrize("n", [1, 2, 9, 25])
def test_products(n):
  matrix, vector = symmetric(n, 5), RNG.normal(size=(n, 5)).astype(np.float32)
  triangle = packed.pack(jnp.asarray(matrix))
  expected = np.einsum("ijb,jb->ib", matrix, vector)
  np.testing.assert_allclose(
    packed.matvec(triangle, vector), expected, rtol=1e-4, atol=1e-4
  )
  outer = packed.unpack(packed.outer(jnp.asarray(vector)))
  np.testing.assert_allclose(outer, vector[:, None] * vector[None], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 9, 16])
def test_inverse_factors_and_their_products(n):
  matrix = np.einsum("ijb,kjb->ikb", *[symmetric(n, 5)] * 2) + np.eye(n)[:, :, None]
  factor = packed.inverse_factor(packed.pack(jnp.asarray(matrix, jnp.float32)))
  cholesky = np.linalg.cholesky(np.moveaxis(matrix, -1, 0))
  expected = np.moveaxis(np.linalg.inv(cholesky), 0, -1)
  lower = np.tril(np.ones((n, n)))[:, :, None]
  np.testing.assert_allclose(
    packed.unpack(factor) * lower, expected, rtol=1e-3, atol=1e-4
  )
  vector = RNG.normal(size=(n, 5)).astype(np.float32)
  for function, subscripts in (
    (packed.lower_matvec, "ijb,jb->ib"),
    (packed.transposed_lower_matvec, "jib,jb->ib"),
  ):
    product = np.einsum(subscripts, expected, vector)
    np.testing.assert_allclose(function(factor, vector), product, rtol=1e-3, atol=1e-3)


def test_a_matrix_that_is_not_positive_definite_has_no_factor():
  good, bad = np.eye(3), np.diag([1.0, -1.0, 1.0])
  matrices = jnp.asarray(np.stack([good, bad], -1), jnp.float32)
  factors = packed.inverse_factor(packed.pack(matrices))
  assert np.isfinite(factors[:, 0]).all()
  assert np.isnan(factors[:, 1]).any()


@pytest.mark.parametrize("n", [1, 4])
def test_diagonal(n):
  matrix = symmetric(n, 3)
  triangle = packed.pack(jnp.asarray(matrix))
  diagonal = np.einsum("iib->ib", matrix)
  np.testing.assert_array_equal(packed.diagonal(triangle), diagonal)
  shifted = packed.unpack(
    packed.add_to_diagonal(triangle, jnp.arange(3, dtype=jnp.float32))
  )
  np.testing.assert_allclose(
    shifted, matrix + np.eye(n)[..., None] * np.arange(3.0), rtol=1e-6
  )


def test_identity():
  identity = packed.unpack(packed.identity(3, (2,), jnp.float32))
  np.testing.assert_array_equal(
    identity, np.broadcast_to(np.eye(3)[..., None], (3, 3, 2))
  )
