"""The inverses alone, against float64 NumPy and single-precision LAPACK."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from mbf_optax import inverse, packed, refresh
from mbf_optax.estimators import Matrices

SIZES = [1, 2, 9, 25, 64, 197, 785]
CONDITIONS = [1e2, 1e4, 1e6]


def packed_inverse(matrices):
  triangles = packed.pack(jnp.moveaxis(matrices, 0, -1))
  return jnp.moveaxis(packed.unpack(packed.inverse(triangles)), -1, 0)


FUNCTIONS = {
  "blocked": jax.jit(inverse.spd_inverse),
  "packed": jax.jit(packed_inverse),
}


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


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_is_within_twice_of_lapack(name, n, condition):
  if name == "packed" and n > 64:
    pytest.skip("packed triangles serve small blocks")
  count = 100 if n <= 64 else 2
  given = matrices_of_condition(count, n, condition).astype(np.float32)
  exact = np.linalg.inv(given.astype(np.float64))
  ours = relative_errors(FUNCTIONS[name](given), exact)
  lapack = relative_errors(lapack_single(given), exact)
  assert np.mean(ours) <= 2 * np.mean(lapack) + 1e-7


@pytest.mark.parametrize("n", [1, 3, 16, 17, 100, 300])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name, n):
  if name == "packed" and n > 64:
    pytest.skip("packed triangles serve small blocks")
  with jax.enable_x64(True):
    given = matrices_of_condition(3, n, 1e4)
    result = FUNCTIONS[name](jnp.asarray(given))
    assert result.dtype == jnp.float64
    assert np.max(relative_errors(result, np.linalg.inv(given))) < 1e-11


@pytest.mark.parametrize("n", [9, 40])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_huge_and_tiny(name, n, scale):
  given = (scale * matrices_of_condition(4, n, 1e2)).astype(np.float32)
  exact = np.linalg.inv(given.astype(np.float64))
  assert np.max(relative_errors(FUNCTIONS[name](given), exact)) < 1e-4


@pytest.mark.parametrize("n", [9, 40, 150])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_damped_rank_deficient(name, n):
  rng = np.random.default_rng(0)
  factors = rng.normal(size=(4, n, 3))
  given = factors @ factors.swapaxes(-1, -2) + 1e-2 * np.eye(n)
  exact = np.linalg.inv(given)
  assert np.max(relative_errors(FUNCTIONS[name](given.astype("float32")), exact)) < 1e-3


@pytest.mark.parametrize("n", [1, 9, 40])
@pytest.mark.parametrize("fault", ["nan", "inf", "indefinite", "singular"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bad_matrix_is_marked_and_leaves_the_others_alone(name, n, fault):
  given = matrices_of_condition(3, n, 10).astype(np.float32)
  clean = np.asarray(FUNCTIONS[name](given))
  bad = {
    "nan": np.full((n, n), np.nan),
    "inf": np.full((n, n), np.inf),
    "indefinite": -np.eye(n),
    "singular": np.zeros((n, n)),
  }
  given[1] = bad[fault]
  result = np.asarray(FUNCTIONS[name](given))
  assert not np.all(np.isfinite(result[1]))
  np.testing.assert_array_equal(result[[0, 2]], clean[[0, 2]])


def test_leading_axes_are_batch_axes():
  given = matrices_of_condition(6, 20, 10).astype(np.float32)
  flat = inverse.spd_inverse(given)
  nested = inverse.spd_inverse(given.reshape(2, 3, 20, 20))
  np.testing.assert_array_equal(np.asarray(nested).reshape(6, 20, 20), flat)


def test_result_is_symmetric():
  given = matrices_of_condition(2, 70, 1e4).astype(np.float32)
  result = np.asarray(inverse.spd_inverse(given))
  np.testing.assert_allclose(result, result.swapaxes(-1, -2), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("small", "large"), [(20, 120), (1100, 4000)])
def test_program_does_not_grow_with_the_matrix(small, large):
  def lines(n):
    shape = jax.ShapeDtypeStruct((1, n, n), jnp.float32)
    return len(jax.jit(inverse.spd_inverse).lower(shape).as_text().splitlines())

  assert lines(large) <= lines(small) + 2


def systems():
  rng = np.random.default_rng(0)

  def damped(*shape):
    g = rng.normal(size=shape)
    return g[..., :, None] * g[..., None, :] + np.eye(shape[-1])

  small = [damped(4, 9), damped(2, 3, 9), damped(5, 4)]
  large = [damped(2, 40), damped(33), damped(3, 60)]
  values = [packed.pack(jnp.moveaxis(jnp.asarray(m), (-2, -1), (0, 1))) for m in small]
  return small + large, [
    *[Matrices(v, True, jnp.zeros(())) for v in values],
    *[Matrices(jnp.asarray(m), False, jnp.zeros(())) for m in large],
  ]


@pytest.mark.parametrize("method", ["sweep", "linalg"])
def test_layers_are_inverted_together(method):
  dense, given = systems()
  previous = [jnp.zeros_like(system.values) for system in given]
  results = refresh.invert(given, previous, method)
  for matrix, system, (result, accepted) in zip(dense, given, results, strict=True):
    assert result.shape == system.values.shape
    assert accepted.shape == matrix.shape[:-2]
    assert np.all(accepted)
    if system.is_packed:
      result = jnp.moveaxis(packed.unpack(result), (0, 1), (-2, -1))
    np.testing.assert_allclose(result, np.linalg.inv(matrix), rtol=1e-3, atol=1e-5)


def _with_a_broken_matrix(system):
  if system.is_packed:
    return system.values.at[:, 0].set(jnp.nan)
  alone = system.values.ndim == 2
  return system.values.at[... if alone else 0].set(jnp.nan)


@pytest.mark.parametrize("method", ["sweep", "linalg"])
def test_a_matrix_without_an_inverse_keeps_the_previous_one(method):
  _, given = systems()
  previous = [jnp.full_like(system.values, 7.0) for system in given]
  broken = [s._replace(values=_with_a_broken_matrix(s)) for s in given]
  results = refresh.invert(broken, previous, method)
  for system, (result, accepted) in zip(broken, results, strict=True):
    is_nan = np.isnan(np.asarray(system.values))
    assert is_nan.any()
    np.testing.assert_array_equal(result[is_nan], 7.0)
    assert not np.any(np.asarray(result)[~is_nan] == 7.0)
    assert np.sum(~np.asarray(accepted)) == np.sum(is_nan) / (
      is_nan.size / accepted.size
    )
