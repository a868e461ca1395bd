"""Inverses by Cholesky factors; few and small ones, as LAPACK serves them here."""

import jax
import numpy as np
import pytest

from mbf_optax._linalg.cholesky import by_cholesky
from tests._linalg import inverses

invert = jax.jit(by_cholesky)


@pytest.mark.parametrize("condition", inverses.CONDITIONS)
def test_float32_is_within_twice_of_lapack(condition):
  inverses.within_twice_of_lapack(invert, 65, condition)


def test_float64():
  inverses.exact_in_float64(invert, 30)


@pytest.mark.parametrize("fault", inverses.FAULTS)
def test_a_bad_matrix_is_marked_and_leaves_the_others_alone(fault):
  inverses.marks_a_bad_matrix_alone(invert, 12, fault)


def test_leading_axes_are_batch_axes():
  given = inverses.matrices_of_condition(6, 20, 10).astype(np.float32)
  nested = np.asarray(invert(given.reshape(2, 3, 20, 20))).reshape(6, 20, 20)
  np.testing.assert_allclose(nested, invert(given), rtol=1e-4, atol=1e-5)
