"""The block sweep alone, against float64 NumPy and single-precision LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import sweep
from tests._linalg import inverses

invert = jax.jit(sweep.spd_inverse)


@pytest.mark.parametrize("condition", inverses.CONDITIONS)
@pytest.mark.parametrize("n", [1, 9, 64, 197, 785])
def test_float32_is_within_twice_of_lapack(n, condition):
  inverses.within_twice_of_lapack(invert, n, condition)


@pytest.mark.parametrize("n", [1, 16, 17, 100, 300])
def test_float64(n):
  inverses.exact_in_float64(invert, n)


@pytest.mark.parametrize("n", [9, 40])
def test_huge_and_tiny(n):
  inverses.right_at_any_scale(invert, n)


@pytest.mark.parametrize("n", [40, 150])
def test_damped_rank_deficient(n):
  inverses.right_where_damping_alone_fills_the_rank(invert, n)


@pytest.mark.parametrize("n", [1, 9, 40])
@pytest.mark.parametrize("fault", inverses.FAULTS)
def test_a_bad_matrix_is_marked_and_leaves_the_others_alone(n, fault):
  inverses.marks_a_bad_matrix_alone(invert, n, fault)


@pytest.mark.parametrize("pivot", [0.0, np.inf])
@pytest.mark.parametrize("n", [1, 40])
def test_a_single_pivot_that_is_zero_or_infinite_makes_everything_nan(n, pivot):
  given = np.eye(n, dtype=np.float32)
  given[-1, -1] = pivot
  assert np.all(np.isnan(invert(given)))


def test_leading_axes_are_batch_axes():
  given = inverses.matrices_of_condition(6, 20, 10).astype(np.float32)
  flat = invert(given)
  nested = invert(given.reshape(2, 3, 20, 20))
  np.testing.assert_array_equal(np.asarray(nested).reshape(6, 20, 20), flat)


@pytest.mark.parametrize("n", [70, 330])
def test_result_is_symmetric(n):
  """Also where a quadrant is mirrored."""
  given = inverses.matrices_of_condition(2, n, 1e4).astype(np.float32)
  result = np.asarray(invert(given))
  np.testing.assert_allclose(result, result.swapaxes(-1, -2), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("small", "large"), [(20, 120), (1100, 4000)])
def test_program_does_not_grow_with_the_matrix(small, large):
  def lines(n):
    shape = jax.ShapeDtypeStruct((1, n, n), jnp.float32)
    return len(jax.jit(sweep.spd_inverse).lower(shape).as_text().splitlines())

  assert lines(large) <= lines(small) + 2


@pytest.mark.parametrize(
  ("n", "order"), [(1, 8), (32, 32), (33, 40), (41, 64), (257, 264), (1025, 1032)]
)
def test_padded_orders_are_coarse_and_spare_one_more_than_a_power(n, order):
  assert sweep.padded_order(n) == order


@pytest.mark.parametrize("n", [40, 72, 128, 136, 200, 264, 320, 1032])
def test_panels_divide_orders_that_are_padded_to(n):
  """A remainder would be a program of its own."""
  assert sweep.padded_order(n) == n
  assert n % sweep.panel_width(n) == 0


def test_padding_is_an_identity_block():
  given = inverses.matrices_of_condition(2, 5, 10).astype(np.float32)
  padded = np.asarray(sweep.pad(jnp.asarray(given), 8))
  np.testing.assert_array_equal(padded[:, :5, :5], given)
  np.testing.assert_array_equal(padded[:, 5:, 5:], [np.eye(3)] * 2)
  assert not padded[:, 5:, :5].any()
  assert not padded[:, :5, 5:].any()
