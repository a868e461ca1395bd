"""What every inverse of symmetric positive definite matrices must do.

Each check takes a jitted function of matrices ``(count, n, n)`` and compares it with
float64 NumPy or single-precision LAPACK.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

CONDITIONS = [1e2, 1e4, 1e6]
FAULTS = ["nan", "inf", "indefinite", "singular"]


def matrices_of_condition(count, n, condition):
  rng = np.random.default_rng(n)
  basis = np.linalg.qr(rng.normal(size=(count, n, n)))[0]
  eigenvalues = np.geomspace(1, 1 / condition, n) if n > 1 else np.ones(1)
  return (basis * eigenvalues) @ basis.swapaxes(-1, -2)


def relative_errors(actual, expected):
  difference = np.linalg.norm(np.asarray(actual, float) - expected, axis=(-2, -1))
  return difference / np.linalg.norm(expected, axis=(-2, -1))


def lapack_single(matrices):
  """``scipy.linalg.inv`` stays in float32, where numpy's works in float64."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
    return np.stack([scipy.linalg.inv(m) for m in matrices])


def within_twice_of_lapack(function, n, condition):
  count = 100 if n <= 64 else 2
  given = matrices_of_condition(count, n, condition).astype(np.float32)
  exact = np.linalg.inv(given.astype(np.float64))
  ours = relative_errors(function(given), exact)
  lapack = relative_errors(lapack_single(given), exact)
  assert np.mean(ours) <= 2 * np.mean(lapack) + 1e-7


def exact_in_float64(function, n):
  with jax.enable_x64(True):
    given = matrices_of_condition(3, n, 1e4)
    result = function(jnp.asarray(given))
    assert result.dtype == jnp.float64
    assert np.max(relative_errors(result, np.linalg.inv(given))) < 1e-11


def right_at_any_scale(function, n):
  for scale in (1e-30, 1e-12, 1e12, 1e30):
    given = (scale * matrices_of_condition(4, n, 1e2)).astype(np.float32)
    exact = np.linalg.inv(given.astype(np.float64))
    assert np.max(relative_errors(function(given), exact)) < 1e-4


def right_where_damping_alone_fills_the_rank(function, n):
  rng = np.random.default_rng(0)
  factors = rng.normal(size=(4, n, 3))
  given = factors @ factors.swapaxes(-1, -2) + 1e-2 * np.eye(n)
  exact = np.linalg.inv(given)
  assert np.max(relative_errors(function(given.astype("float32")), exact)) < 1e-3


def marks_a_bad_matrix_alone(function, n, fault):
  """The bad one is not finite, the others are what they are without it."""
  given = matrices_of_condition(3, n, 10).astype(np.float32)
  clean = np.asarray(function(given))
  bad = {
    "nan": np.full((n, n), np.nan),
    "inf": np.full((n, n), np.inf),
    "indefinite": -np.eye(n),
    "singular": np.zeros((n, n)),
  }
  given[1] = bad[fault]
  result = np.asarray(function(given))
  assert not np.all(np.isfinite(result[1]))
  np.testing.assert_array_equal(result[[0, 2]], clean[[0, 2]])
