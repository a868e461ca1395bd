"""What is known of statistics, against NumPy."""

import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import statistics, triangles
from mbf_optax._linalg.statistics import Spectrum, Statistics

G = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
G = G + G.swapaxes(-1, -2)


def check(found, expected):
  np.testing.assert_allclose(found.spectrum.mean_diagonal, expected, rtol=1e-5)
  assert found.spectrum[1:] == (found.order, found.sharers, (0,), False)
  assert found.batch == expected.shape


def test_mean_diagonals_of_packed_triangles():
  packed = triangles.pack(jnp.moveaxis(jnp.asarray(G), (-2, -1), (0, 1)))
  given = Statistics(packed, True, np.full((1, 1), 4), 1, (0,))
  check(given, np.trace(G, axis1=-2, axis2=-1) / 4)


def test_padding_does_not_count():
  """The last part of every layer has a row less."""
  padded = G.copy()
  padded[:, -1, -1], padded[:, -1, :, -1] = 0, 0
  order = np.array([[4, 4, 3]])
  given = Statistics(jnp.asarray(padded), False, order, 9, (0,))
  check(given, np.trace(padded, axis1=-2, axis2=-1) / order)


def test_a_regularizer_that_leaves_statistics_as_they_are():
  spectrum = Spectrum(jnp.array([2.0, 3.0]), np.array([4]), 1, ())
  scale, shift = statistics.unregularized(spectrum)
  np.testing.assert_array_equal(scale, [1, 1])
  np.testing.assert_array_equal(shift, [0, 0])


def test_numbers_of_layers_are_joined_in_their_order():
  values = [np.array(1), np.array([[4], [5]])]
  found = statistics.joint(values, [(), (2, 2)])
  np.testing.assert_array_equal(found, [1, 4, 4, 5, 5])
  alone = statistics.joint(values[1:], [(2, 2)])
  np.testing.assert_array_equal(alone, [[4, 4], [5, 5]])
