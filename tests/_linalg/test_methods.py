"""Every way to invert the matrices of a group, against NumPy's inverses."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import methods
from mbf_optax._linalg.groups import Group

each_method = pytest.mark.parametrize("method", ["sweep", "linalg"])


def lower(n, count=2):
  """Lower triangles of which no two rows, columns or matrices are alike."""
  values = np.random.default_rng(n).normal(size=(count, n, n)) / n
  return np.tril(values) + np.eye(n) * np.arange(1, n + 1)


def packed(matrices):
  rows, columns = np.triu_indices(matrices.shape[-1])
  return jnp.asarray(matrices[:, rows, columns].T, jnp.float32)


@each_method
@pytest.mark.parametrize("order", [9, 17])
def test_whole_matrices_of_any_order_are_inverted(method, order):
  """Orders that are padded on the way among them."""
  factors = lower(order)
  matrices = factors @ factors.swapaxes(-1, -2)
  values = [jnp.asarray(matrices, jnp.float32), jnp.asarray(matrices[0], jnp.float32)]
  both, one = methods.invert(Group(False, False, []), values, method)
  np.testing.assert_allclose(both, np.linalg.inv(matrices), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(one, both[0], rtol=1e-3, atol=1e-5)


def test_whole_matrices_on_several_devices_are_swept_as_they_are(monkeypatch):
  monkeypatch.setattr(methods, "may_join", lambda: False)
  monkeypatch.setattr(methods, "padded_order", lambda n: pytest.fail("it is padded"))
  factors = lower(9)
  matrices = factors @ factors.swapaxes(-1, -2)
  values = [jnp.asarray(matrices, jnp.float32)]
  (found,) = methods.invert(Group(False, False, []), values, "sweep")
  np.testing.assert_allclose(found, np.linalg.inv(matrices), rtol=1e-3, atol=1e-5)


@each_method
def test_packed_matrices_are_inverted(method):
  factors = lower(4)
  matrices = factors @ factors.swapaxes(-1, -2)
  values = [packed(matrices), packed(matrices[:1])]
  both, one = methods.invert(Group(True, False, []), values, method)
  expected = packed(np.linalg.inv(matrices))
  np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(one, expected[:, :1], rtol=1e-4, atol=1e-5)


@each_method
def test_the_factor_of_an_inverse_is_the_inverse_of_the_cholesky_factor(method):
  """It is lower triangular, and its entry ``(j, i)`` is packed as ``(i, j)``."""
  factors = lower(4)
  values = [packed(factors @ factors.swapaxes(-1, -2))]
  (found,) = methods.invert(Group(True, True, []), values, method)
  expected = packed(np.linalg.inv(factors).swapaxes(-1, -2))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@each_method
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_singular_matrix_has_no_finite_inverse(method, is_packed):
  matrices = np.stack([np.eye(3), np.diag([1.0, 0.0, 1.0])])
  values = packed(matrices) if is_packed else jnp.asarray(matrices, jnp.float32)
  (found,) = methods.invert(Group(is_packed, False, []), [values], method)
  found = np.moveaxis(np.asarray(found), 1 if is_packed else 0, 0)
  assert np.all(np.isfinite(found[0]))
  assert not np.all(np.isfinite(found[1]))
