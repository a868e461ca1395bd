"""Powers from shifted inverses, against powers of the eigenvalues in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mbf_optax._linalg import shifts as module

EXPONENTS = np.linspace(0, 1, 101)
# The bounds of 64, 785 and 4097 elements with a damping of 0.1 and what is stated for
# them, the ends of the table, and bounds between its nodes.
ERRORS = {
  1.0: 3e-5,
  3.7: 3e-5,
  8.0: 3e-5,
  13.0: 3e-5,
  91.0: 4e-5,
  641.0: 2.8e-4,
  2222.0: 8e-4,
  7851.0: 1.7e-3,
  40971.0: 4.0e-3,
  1.3e6: 1.5e-2,
  1e7: 2.6e-2,
}


@jax.jit
def both(exponents, bounds):
  return module.weights(exponents, bounds), module.poles(bounds)


def numbers(exponents, bound, dtype=np.float32):
  given = np.asarray(exponents, dtype)
  return both(given, np.full_like(given, bound))


def summands(weights, shifts, eigenvalues):
  """``(summands, exponents, eigenvalues)`` in float64."""
  weights, shifts = np.asarray(weights, float), np.asarray(shifts, float)
  inverses = 1 / (eigenvalues + shifts[..., None])
  ones = np.ones_like(inverses[:1])
  return weights[..., None] * np.concatenate([ones, inverses])


def relative(summands, eigenvalues, exponents=EXPONENTS):
  exponents = np.asarray(exponents, np.float32).astype(float)
  return summands * eigenvalues ** exponents[:, None]


def worst_error(weights, shifts, bound, exponents=EXPONENTS):
  eigenvalues = np.geomspace(1, bound, 1000)
  sums = summands(weights, shifts, eigenvalues).sum(0)
  return np.abs(relative(sums, eigenvalues, exponents) - 1).max()


@pytest.mark.parametrize("bound", ERRORS)
def test_error_is_bounded_over_exponents_and_spectra(bound):
  assert worst_error(*numbers(EXPONENTS, bound), bound) <= ERRORS[bound]


def test_error_is_bounded_at_random_exponents_and_bounds():
  rng = np.random.default_rng(0)
  exponents = rng.uniform(size=EXPONENTS.shape)
  for bound in np.exp(rng.uniform(np.log(1), np.log(40971), 30)):
    error = worst_error(*numbers(exponents, bound), bound, exponents)
    assert error <= 4.0e-3


@pytest.mark.parametrize("bound", ERRORS)
def test_nothing_cancels(bound):
  eigenvalues = np.geomspace(1, bound, 1000)
  parts = summands(*numbers(EXPONENTS, bound), eigenvalues)
  assert relative(np.abs(parts).sum(0), eigenvalues).max() <= 1.03


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", ERRORS)
def test_ends_are_exact(bound, dtype):
  with jax.enable_x64(dtype == np.float64):
    weights, shifts = numbers([-0.5, 0, 1, 1.5], bound, dtype)
  identity, inverse = np.eye(module.POLES + 1)[:2]
  np.testing.assert_array_equal(weights.T, [identity, identity, inverse, inverse])
  np.testing.assert_array_equal(shifts[0], 0)


def test_shifts_rise_and_belong_to_the_nearest_bound_of_the_table():
  bounds = np.array([1.0, 8.0, 1e3, 1e7, 1e9], np.float32)
  shifts = np.asarray(module.poles(jnp.asarray(bounds)))
  assert shifts.shape == (module.POLES, 5)
  assert np.all(np.diff(shifts, axis=0) > 0)
  np.testing.assert_array_equal(shifts[:, 0], shifts[:, 1])
  np.testing.assert_array_equal(shifts[:, 3], shifts[:, 4])
  # Symmetric about the middle of the spectrum.
  np.testing.assert_allclose(shifts[1] * shifts[4], np.clip(bounds, 8, 1e7), rtol=1e-5)
  np.testing.assert_allclose(shifts[2] * shifts[3], np.clip(bounds, 8, 1e7), rtol=1e-5)


@pytest.mark.parametrize("bound", [641.0, 7851.0, 40971.0])
def test_a_third_or_so_of_the_error_of_poles_made_for_the_root(bound):
  """Hale, Higham and Trefethen's poles, each exponent's weights by least squares."""
  parameter = 1 - 1 / bound
  points = (np.arange(4) + 0.5) / 4 * scipy.special.ellipk(parameter)
  sn, cn, *_ = scipy.special.ellipj(points, parameter)
  x = np.geomspace(1, bound, 1000)
  columns = [np.ones_like(x)] + [1 / (x + s) for s in [0, *(sn / cn) ** 2]]
  theirs = 0.0
  for p in EXPONENTS:
    design = np.stack(columns, axis=1) * x[:, None] ** p
    fitted = design @ np.linalg.lstsq(design, np.ones_like(x))[0]
    theirs = max(theirs, np.abs(fitted - 1).max())
  assert worst_error(*numbers(EXPONENTS, bound), bound) <= 0.35 * theirs


def test_matrix_power_in_single_precision():
  bound, n = 7851.0, 60
  rng = np.random.default_rng(1)
  basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
  eigenvalues = np.geomspace(1, bound, n)
  a = ((basis * eigenvalues) @ basis.T).astype(np.float32)
  exponents = np.array([0.1, 0.5, 0.75, 0.9])
  weights, shifts = (np.asarray(x) for x in numbers(exponents, bound))
  for p, w, s in zip(exponents, weights.T, shifts.T, strict=True):
    identity = np.eye(n, dtype=np.float32)
    shifted = [np.linalg.inv(a + shift * identity) for shift in s]
    ours = w[0] * identity + sum(x * y for x, y in zip(w[1:], shifted, strict=True))
    assert ours.dtype == np.float32
    exact = (basis * eigenvalues**-p) @ basis.T
    # Relative in every direction: with A^(p/2) on both sides all powers are of order 1.
    root = (basis * eigenvalues ** (p / 2)) @ basis.T
    assert np.linalg.norm(root @ (ours - exact) @ root, 2) <= 2e-3


def test_traced_vmapped_and_shaped_alike():
  exponents = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
  bounds = np.geomspace(2, 1e5, 6, dtype=np.float32).reshape(2, 3)
  expected = both(exponents, bounds)
  assert expected[0].shape == (module.POLES + 1, 2, 3)
  assert expected[1].shape == (module.POLES, 2, 3)
  mapped = jax.jit(jax.vmap(jax.vmap(both, 0, 1), 0, 1))(exponents, bounds)
  for ours, theirs in zip(mapped, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
  scalar = both(exponents[1, 1], bounds[1, 1])
  for ours, theirs in zip(scalar, expected, strict=True):
    np.testing.assert_allclose(ours, theirs[:, 1, 1], rtol=2e-5, atol=1e-6)


def test_float64_stays_and_agrees_with_float32():
  with jax.enable_x64(True):
    wide = numbers(EXPONENTS, 7851.0, np.float64)
  narrow = numbers(EXPONENTS, 7851.0)
  for ours, theirs in zip(wide, narrow, strict=True):
    assert ours.dtype == np.float64
    assert theirs.dtype == np.float32
    expected = np.asarray(ours)
    atol = 1e-5 * np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(np.asarray(theirs, float) - expected) <= atol)
  assert worst_error(*wide, 7851.0) <= 1.7e-3


def test_table_is_a_small_constant():
  exponent, bound = jnp.float32(0.5), jnp.float32(100)
  constants = jax.make_jaxpr(module.weights)(exponent, bound).consts
  assert 0 < sum(np.asarray(x).nbytes for x in constants) <= 10_000
