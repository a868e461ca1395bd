"""The product behind the shared statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax.shared import symmetric_product


@pytest.mark.parametrize(
  "shape", [(7, 3), (576, 90), (577, 200), (2, 1200, 400), (2500, 840), (2500, 80)]
)
def test_symmetric_product(shape):
  columns = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  product = np.asarray(symmetric_product(jnp.asarray(columns)))
  np.testing.assert_array_equal(product, np.swapaxes(product, -1, -2))
  expected = columns @ np.swapaxes(columns, -1, -2)
  np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("relative", [False, True])
def test_rows_to_spare_change_nothing(relative):
  """Wide matrices are kept with a few rows too many; here in two stacked layers."""
  stacked = mbf_optax.Layer(block_axes=(1,), estimator="shared", stack_axes=1)
  partition = mbf_optax.flax_partition(overrides=[("dense", stacked)])
  shapes = {"kernel": (2, 260, 5), "bias": (2, 5)}
  rng = np.random.default_rng(0)
  gradient = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  gradients = {"dense": jax.tree.map(jnp.asarray, gradient)}
  tx = mbf_optax.scale_by_mbf(0.1, relative_damping=relative, partition=partition)
  updates, state = jax.jit(tx.update)(gradients, tx.init(gradients))
  assert state.curvature["dense/kernel"].inverse.shape == (2, 264, 264)
  for i in range(2):
    columns = np.concatenate([gradient["kernel"][i], gradient["bias"][i][None]])
    matrix = columns @ columns.T.astype(np.float64) / 5
    damping = 0.1 * np.trace(matrix) / 261 if relative else 0.1
    expected = np.linalg.solve(matrix + damping * np.eye(261), columns)
    np.testing.assert_allclose(
      updates["dense"]["kernel"][i], expected[:-1], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
      updates["dense"]["bias"][i], expected[-1], rtol=1e-3, atol=1e-4
    )
    diagonal = np.diagonal(state.curvature["dense/kernel"].inverse[i])
    assert diagonal[261:].max() < diagonal[:261].max()  # nor the condition number
