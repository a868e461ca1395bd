"""One matrix for all blocks of a layer, cut into parts where it is wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._estimators.shared import Columns, Parts
from mbf_optax._linalg.products import diagonals


@pytest.mark.parametrize(
  ("n", "limit", "has_bias", "orders", "kept"),
  [
    (0, 8, True, [1], 1),
    (7, 8, False, [7], 7),
    (7, 8, True, [8], 8),
    (8, 8, True, [9], 9),
    (9, 8, False, [5, 4], 5),
    (9, 8, True, [5, 5], 5),
    (8, 4, True, [4, 5], 5),
    (10, 4, False, [4, 4, 2], 4),
    (261, 512, False, [261], 264),
    (256, 512, True, [257], 264),
    (261, 256, False, [131, 130], 131),
  ],
)
def test_parts_are_equal_within_the_limit(n, limit, has_bias, orders, kept):
  """The bias is in the last, and a wide one that is not cut divides over a mesh."""
  parts = Parts(n, limit, has_bias)
  np.testing.assert_array_equal(parts.orders(1), [orders])
  assert (parts.count, parts.kept) == (len(orders), kept)
  weights = jnp.arange(2.0 * n).reshape(n, 2)
  columns = Columns(weights, -jnp.ones((1, 2)) if has_bias else None)
  split = parts.split(columns)
  assert split.shape == (len(orders), kept, 2)
  last = split[-1, orders[-1] - 1]
  np.testing.assert_array_equal(last, -np.ones(2) if has_bias else weights[-1])
  jax.tree.map(np.testing.assert_array_equal, parts.join(split), columns)


@pytest.mark.parametrize("relative", [False, True])
def test_rows_to_spare_change_nothing(relative):
  """Wide matrices are kept with a few rows too many; here in two stacked layers."""
  stacked = mbf_optax.Layer(
    block_axes=(1,), estimator="shared", stack_axes=(0,), block_limit=512
  )
  partition = mbf_optax.flax_partition(overrides=[("dense", stacked)])
  shapes = {"kernel": (2, 260, 5), "bias": (2, 5)}
  rng = np.random.default_rng(0)
  gradient = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  gradients = {"dense": jax.tree.map(jnp.asarray, gradient)}
  tx = mbf_optax.scale_by_mbf(0.1, relative_damping=relative, partition=partition)
  updates, state = jax.jit(tx.update)(gradients, tx.init(gradients))
  assert state.curvature["dense/kernel"].inverse.shape == (2, 1, 264, 264)
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
  # Nor do they enter condition numbers.
  kept = state.curvature["dense/kernel"]
  found = Parts(260, 512, True).inverse_diagonals(kept)
  np.testing.assert_array_equal(found[:261], diagonals(kept.inverse)[:261])
  assert (np.asarray(found[261:]) == np.asarray(found[:1])).all()


def test_parts_of_a_wide_layer_are_inverted_by_themselves():
  """Each a layer of its own inputs; the bias goes with the last."""
  layer = mbf_optax.Layer((0,), "shared", block_limit=4)
  partition = mbf_optax.flax_partition(overrides=[("kernel", layer)])
  rng = np.random.default_rng(1)
  gradient = {
    "kernel": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
  }
  tx = mbf_optax.scale_by_mbf(0.1, partition=partition)
  updates, _ = tx.update(gradient, tx.init(gradient))
  columns = np.concatenate([gradient["kernel"], gradient["bias"][None]])
  for rows in (slice(0, 3), slice(3, 7)):
    own = columns[rows].astype(np.float64)
    matrix = own @ own.T / 3 + 0.1 * np.eye(len(own))
    columns[rows] = np.linalg.solve(matrix, own)
  np.testing.assert_allclose(updates["kernel"], columns[:-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(updates["bias"], columns[-1], rtol=1e-4, atol=1e-5)
