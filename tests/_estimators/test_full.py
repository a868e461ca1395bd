"""A matrix for every block, as triangles or whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._estimators.full import PACKED_LIMIT, MatrixBlocks, PackedBlocks
from mbf_optax._estimators.table import estimator_of
from mbf_optax._linalg.statistics import unregularized
from mbf_optax._partition.layer import Layer, read


def both(n):
  """The same layer kept in either way."""
  reading = read("kernel", (n, 3), Layer((0,)))
  return PackedBlocks(reading), MatrixBlocks(reading)


@pytest.mark.parametrize("n", [1, 4])
def test_triangles_and_matrices_are_the_same_estimator(n):
  rng = np.random.default_rng(0)
  gradient = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
  found = []
  for estimator in both(n):
    state = estimator.init(jnp.float32)
    state = estimator.accumulate(state, estimator.entry([gradient]), jnp.float32(0.5))
    # Not an inverse, but a matrix that both can hold and apply.
    state = state._replace(inverse=state.statistics + state.inverse)
    found.append(
      (
        *estimator.precondition(state, [gradient], unregularized),
        estimator.condition(state, jnp.float32(0.5)),
        estimator.spread(state),
      )
    )
  for packed, whole in zip(*found, strict=True):
    np.testing.assert_allclose(packed, whole, rtol=1e-5)


@pytest.mark.parametrize(
  ("n", "kind"), [(PACKED_LIMIT, PackedBlocks), (PACKED_LIMIT + 1, MatrixBlocks)]
)
def test_small_blocks_are_packed(n, kind):
  assert type(estimator_of(read("kernel", (n, 2), Layer((0,))))) is kind


def test_operations_of_a_matrix_for_every_block():
  """Two operations an element of a product, three for ``beta G + (1 - beta) g g^T``."""
  counted = estimator_of(read("kernel", (10, 3), Layer((0,)))).operations()
  assert counted == (2 * 100 * 3, 3 * 100 * 3, 2 * 1000 * 3)
