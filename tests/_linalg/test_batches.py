"""Inverses and powers of many layers at once, against NumPy layer by layer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import batches, shifts, triangles
from mbf_optax._linalg.batches import Exponents
from mbf_optax._linalg.groups import Matrices
from mbf_optax._linalg.rows import row_scales
from mbf_optax._linalg.statistics import Statistics

LEAST, SCALE = 0.1, 3.0
SHAPES = [(4, 9), (2, 3, 9), (5, 4), (2, 40), (33,), (3, 60)]
PACKED = 3  # the first of them


def dense():
  """Matrices of mean diagonal 1 plus ``LEAST`` times the identity, by layer."""
  return [g + LEAST * np.eye(g.shape[-1]) for g in statistics()]


def statistics():
  """Matrices of mean diagonal 1 and rank 3."""
  rng = np.random.default_rng(0)
  layers = []
  for shape in SHAPES:
    g = rng.normal(size=(*shape[:-1], 3, shape[-1]))
    outer = g.swapaxes(-1, -2) @ g
    mean = np.trace(outer, axis1=-2, axis2=-1)[..., None, None] / shape[-1]
    layers.append(outer / mean)
  return layers


def packed(matrices):
  return triangles.pack(jnp.moveaxis(jnp.asarray(matrices), (-2, -1), (0, 1)))


def unpacked(system, values):
  """As matrices ``(*batch, n, n)``."""
  if not system.is_packed:
    return np.asarray(values)
  return np.moveaxis(np.asarray(triangles.unpack(values)), (0, 1), (-2, -1))


def systems(dtype="float32"):
  """The statistics divided by ``SCALE``, to be multiplied by it again."""
  found = []
  for index, matrices in enumerate(statistics()):
    values = jnp.asarray(matrices / SCALE, dtype)
    batch, n = values.shape[:-2], values.shape[-1]
    least = jnp.full([1] * len(batch), LEAST, dtype)
    is_packed = index < PACKED
    values = packed(values) if is_packed else values
    scale, order = SCALE * jnp.ones_like(least), np.full([1] * len(batch), n)
    found.append(Matrices(values, is_packed, scale, least, order))
  return found


def inverses(method):
  """LAPACK's batched calls in one compiled program never return from some jaxlibs."""

  def invert(values, previous):
    given = [s._replace(statistics=v) for s, v in zip(systems(), values, strict=True)]
    return batches.inverses(given, previous, method)

  return invert if method == "linalg" else jax.jit(invert)


def unregularized(given):
  """Systems as the statistics that they are made of."""
  return [Statistics(s.statistics, s.is_packed, s.order, 1, ()) for s in given]


def constant(spectrum):
  """``SCALE G + LEAST I`` of any statistics."""
  ones = jnp.ones_like(spectrum.mean_diagonal)
  return SCALE * ones, LEAST * ones


def everywhere(p, given):
  """One exponent for all layers."""
  return Exponents(jnp.asarray([p], given[0].shift.dtype), [np.array(0)] * len(given))


@jax.jit
def powers(values, p, previous):
  given = [s._replace(statistics=v) for s, v in zip(systems(), values, strict=True)]
  return batches.row_scaled_powers(
    unregularized(given), constant, everywhere(p, given), previous
  )


def values_of(given):
  return [system.statistics for system in given]


@pytest.mark.parametrize("method", ["sweep", "linalg"])
def test_layers_are_inverted_together(method):
  given = systems()
  previous = [jnp.zeros_like(system.statistics) for system in given]
  results = inverses(method)(values_of(given), previous)
  for matrix, system, result in zip(dense(), given, results, strict=True):
    assert result.values.shape == system.statistics.shape
    np.testing.assert_array_equal(result.shift, system.shift)
    assert result.is_new.shape == matrix.shape[:-2]
    assert np.all(result.is_new)
    found = unpacked(system, result.values)
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["sweep", "linalg"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_a_layer_alone_keeps_the_shape_of_its_batch(method, batch):
  """Nothing is joined, so that the batch reaches the inverse as it is."""
  a = np.broadcast_to(dense()[0][0], (*batch, 9, 9))
  one = jnp.ones([1] * len(batch))
  for as_factor in (False, True):
    system = Matrices(packed(a), True, one, 0 * one, as_factor=as_factor)
    (result,) = batches.inverses([system], [jnp.zeros_like(system.statistics)], method)
    found = unpacked(system, result.values)
    if as_factor:
      upper = np.triu(found)  # the transposed of the inverse factor
      found = upper @ upper.swapaxes(-1, -2)
    np.testing.assert_allclose(found, np.linalg.inv(a), rtol=1e-4, atol=1e-4)


def with_a_broken_matrix(system):
  if system.is_packed:
    return system.statistics.at[:, 0].set(jnp.nan)
  alone = system.statistics.ndim == 2
  return system.statistics.at[... if alone else 0].set(jnp.nan)


def check_broken(broken, results):
  for values, result in zip(broken, results, strict=True):
    is_nan = np.isnan(np.asarray(values))
    assert is_nan.any()
    new, is_new = np.asarray(result.values), np.asarray(result.is_new)
    np.testing.assert_array_equal(new[is_nan], 7.0)
    assert not np.any(new[~is_nan] == 7.0)
    assert np.sum(~is_new) == np.sum(is_nan) / (is_nan.size / is_new.size)


@pytest.mark.parametrize("method", ["sweep", "linalg"])
def test_a_matrix_without_an_inverse_keeps_the_previous_one(method):
  given = systems()
  previous = [jnp.full_like(system.statistics, 7.0) for system in given]
  broken = list(map(with_a_broken_matrix, given))
  check_broken(broken, inverses(method)(broken, previous))


def test_a_matrix_without_a_power_keeps_the_previous_one():
  given = systems()
  previous = [jnp.full_like(system.statistics, 7.0) for system in given]
  broken = list(map(with_a_broken_matrix, given))
  check_broken(broken, powers(broken, 0.5, previous))


def exact_power(matrices, exponents):
  eigenvalues, vectors = np.linalg.eigh(matrices)
  scaled = vectors * eigenvalues[..., None, :] ** -exponents[..., None, None]
  return scaled @ vectors.swapaxes(-1, -2)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_powers_are_within_the_bound_of_the_shifts(p):
  """``tests/_linalg/test_shifts.py`` bounds the scalar error; a norm has the same."""
  given, layers = systems(), dense()
  previous = [jnp.zeros_like(system.statistics) for system in given]
  results = powers(values_of(given), p, previous)
  for matrices, system, result in zip(layers, given, results, strict=True):
    exact = exact_power(matrices, np.full([1] * (matrices.ndim - 2), p))
    error = np.linalg.norm(unpacked(system, result.values) - exact, 2, (-2, -1))
    tolerance = 2e-5 if p in (0, 1) else 1e-3
    assert np.all(error < tolerance * np.linalg.norm(exact, 2, (-2, -1)))


def test_rows_of_uneven_matrices_are_scaled():
  """On both sides of the power, in every layout, layer by layer."""
  given, rng = [], np.random.default_rng(1)
  for system, matrices in zip(systems(), statistics(), strict=True):
    f = np.geomspace(1e-2, 1e2, matrices.shape[-1])[rng.permutation(matrices.shape[-1])]
    uneven = f[:, None] * matrices * f
    n = matrices.shape[-1]
    uneven = (
      uneven * (n / np.trace(uneven, axis1=-2, axis2=-1))[..., None, None] / SCALE
    )
    values = packed(uneven) if system.is_packed else jnp.asarray(uneven)
    given.append(system._replace(statistics=values.astype(jnp.float32)))
  previous = [jnp.zeros_like(system.statistics) for system in given]
  results = powers(values_of(given), 0.5, previous)
  for system, result in zip(given, results, strict=True):
    g = unpacked(system, system.statistics)
    d = np.diagonal(g, axis1=-2, axis2=-1)
    order = jnp.full(d.shape[:-1], d.shape[-1], jnp.float32)
    trust = jnp.full(d.shape[:-1], SCALE)  # the mean diagonal is one over SCALE
    f = row_scales(jnp.moveaxis(jnp.asarray(d), -1, 0), order, trust)
    f = np.moveaxis(np.asarray(f, float), 0, -1)
    assert np.all(np.max(f, axis=-1) > 2)
    matrices = SCALE * np.asarray(g, float) + LEAST * np.eye(g.shape[-1])
    power = exact_power(matrices, np.full([1] * (g.ndim - 2), 0.5))
    error = unpacked(system, result.values) / f[..., :, None] / f[..., None, :] - power
    error = np.linalg.norm(error, 2, (-2, -1))
    assert np.all(error < 1e-3 * np.linalg.norm(power, 2, (-2, -1)))


def test_every_matrix_may_have_an_exponent_and_a_least_eigenvalue_of_its_own():
  """As stacked layers do."""
  matrices = statistics()[1][..., :8, :8]
  exponents = np.array([0.3, 0.9]).reshape(2, 1)
  least = np.array([0.02, 0.3]).reshape(2, 1)
  given = Statistics(
    jnp.asarray(matrices, jnp.float32), False, np.full((1, 1), 8), 1, (0,)
  )
  values = Exponents(jnp.array([0.5, 0.3, 0.9]), [np.array([1, 2])])
  (result,) = batches.row_scaled_powers(
    [given],
    lambda _: (jnp.ones((1, 1)), jnp.asarray(least, jnp.float32)),
    values,
    [jnp.zeros((2, 3, 8, 8))],
  )
  exact = exact_power(matrices + least[..., None, None] * np.eye(8), exponents)
  np.testing.assert_allclose(result.values, exact, rtol=1e-2, atol=1e-2)


def test_powers_of_float64_are_wide():
  with jax.enable_x64(True):
    given = systems(dtype="float64")[:1]
    previous = [jnp.zeros_like(given[0].statistics)]
    (result,) = batches.row_scaled_powers(
      unregularized(given), constant, everywhere(1.0, given), previous
    )
    exact = packed(np.linalg.inv(dense()[0]))
    np.testing.assert_allclose(result.values, exact, rtol=1e-9, atol=1e-9)


def test_dtypes_are_not_joined():
  """Layers of float32 and float64 in one tree keep their precision."""
  with jax.enable_x64(True):
    wide, narrow = systems(dtype="float64"), systems(dtype="float32")
    given = [pair for pairs in zip(wide, narrow, strict=True) for pair in pairs]
    previous = [jnp.zeros_like(system.statistics) for system in given]
    results = jax.jit(
      lambda values, previous: batches.inverses(
        [s._replace(statistics=v) for s, v in zip(given, values, strict=True)], previous
      )
    )(values_of(given), previous)
    for system, result in zip(given, results, strict=True):
      assert result.values.dtype == system.statistics.dtype
    for matrix, system, result in zip(dense(), wide, results[::2], strict=True):
      found = unpacked(system, result.values)
      np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-9, atol=1e-9)


def all_powers(given):
  previous = [jnp.zeros_like(system.statistics) for system in given]

  def powers():
    results = batches.row_scaled_powers(
      unregularized(given), constant, everywhere(0.5, given), previous
    )
    return [result.values for result in results]

  return powers


def loops(function):
  return jax.jit(function).lower().as_text().count("stablehlo.while")


def test_one_sweep_serves_every_pole_and_all_layers_of_an_order(monkeypatch):
  """The program holds one sweep an order, not one for each of the five shifts."""
  given = systems()
  previous = [jnp.zeros_like(system.statistics) for system in given]
  once = loops(lambda: [r.values for r in batches.inverses(given, previous)])
  assert shifts.POLES > 1
  assert loops(all_powers(given)) == once
  monkeypatch.setattr(batches, "_FEW", 0)
  assert loops(all_powers(given)) == once + 1


def test_many_matrices_take_their_poles_in_turn_to_the_same_powers(monkeypatch):
  given = systems()
  at_once = jax.jit(all_powers(given))()
  monkeypatch.setattr(batches, "_FEW", 0)
  in_turn = jax.jit(all_powers(given))()
  chex.assert_trees_all_close(at_once, in_turn, rtol=1e-5, atol=1e-5)
