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
