"""Inverse roots against NumPy's eigendecomposition, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.baselines.roots import inverse_root


def expected_root(matrix, p):
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * values ** (-1 / p)) @ vectors.T


def random_spd(seed, n, rank, damping):
  rng = np.random.default_rng(seed)
  columns = rng.normal(size=(n, rank)) * np.geomspace(1, 30, rank)
  return columns @ columns.T + damping * np.eye(n)


@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_inverse_roots(p):
  """A batch of condition numbers from 1 to 1e6, of scales from 1e-4 to 1e4."""
  systems = [
    random_spd(0, 12, 24, 1e-1),
    1e-4 * random_spd(1, 12, 5, 1e-2),
    1e4 * random_spd(2, 12, 3, 1e-2),
    np.eye(12),
  ]
  roots = jax.jit(inverse_root, static_argnums=1)(jnp.float32(np.stack(systems)), p)
  for system, root in zip(systems, roots, strict=True):
    expected = expected_root(np.float64(np.float32(system)), p)
    condition = np.linalg.cond(system)
    error = np.linalg.norm(root - expected) / np.linalg.norm(expected)
    assert error < 1e-5 + 1e-7 * condition / p


def test_order_one_and_not_finite():
  matrices = jnp.array([16.0, jnp.inf, jnp.nan]).reshape(3, 1, 1)
  roots = inverse_root(matrices, 4).ravel()
  np.testing.assert_allclose(roots[0], 0.5, rtol=1e-6)
  assert not np.isfinite(roots[1:]).any()


def test_eigenvalues_of_many_magnitudes():
  """The smallest make the residual's error 1 as computed, for many iterations."""
  values = np.geomspace(1e-9, 1e3, 12)
  roots = inverse_root(jnp.float32(np.diag(values)), 4)
  np.testing.assert_allclose(roots, np.diag(values**-0.25), rtol=1e-4, atol=1e-6)
