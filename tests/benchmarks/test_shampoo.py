"""Shampoo against loops and eigendecompositions in float64 NumPy."""

import jax.numpy as jnp
import numpy as np

from benchmarks.baselines import scale_by_shampoo
from tests.benchmarks.common import random_gradients, run

SHAPES = {
  "bias": (3,),
  "conv": (2, 3, 2, 3),
  "dense": (3, 4),
  "number": (),
  "stack": (3, 2, 3),
}
GRADIENTS = random_gradients(SHAPES, 6)
DAMPING, MOMENTUM, EMA = 0.01, 0.8, 0.7


def reference(gradients, statistics_period, inverse_period):
  """The directions of one array, axis by axis, from explicit unfoldings."""
  rank = gradients[0].ndim
  momentum = np.zeros_like(gradients[0])
  statistics = [np.zeros((n, n)) for n in gradients[0].shape]
  entries = 0
  for step, gradient in enumerate(gradients):
    momentum = MOMENTUM * momentum + gradient
    if step % statistics_period == 0:
      entries += 1
      for axis in range(rank):
        slices = [gradient.take(i, axis).ravel() for i in range(gradient.shape[axis])]
        second = np.array([[a @ b for b in slices] for a in slices])
        statistics[axis] = EMA * statistics[axis] + (1 - EMA) * second
    if step % inverse_period == 0:
      roots = []
      for matrix in statistics:
        values, vectors = np.linalg.eigh(matrix / (1 - EMA**entries))
        roots.append((vectors * (values + DAMPING) ** (-0.5 / rank)) @ vectors.T)
    direction = momentum
    for axis in range(rank):
      direction = np.apply_along_axis(lambda v, r=roots[axis]: r @ v, axis, direction)
    yield direction


def test_follows_numpy():
  periods = (2, 3)
  tx = scale_by_shampoo(DAMPING, MOMENTUM, EMA, *periods)
  found, _ = run(tx, GRADIENTS)
  for name in SHAPES:
    gradients = [np.float64(gradient[name]) for gradient in GRADIENTS]
    for updates, expected in zip(found, reference(gradients, *periods), strict=True):
      np.testing.assert_allclose(updates[name], expected, rtol=2e-4, atol=2e-5)


def test_damping_below_rounding():
  """A statistic of large norm and low rank stays positive definite as computed."""
  rng = np.random.default_rng(0)
  gradient = 1e3 * np.outer(rng.normal(size=20), rng.normal(size=30))
  tx = scale_by_shampoo(1e-8, 0.0)
  (updates,), state = run(tx, [{"dense": jnp.float32(gradient)}])
  assert all(not np.array_equal(r, np.eye(len(r))) for r in state.roots["dense"])
  expected = gradient / np.linalg.norm(gradient)  # its singular value to the power 0
  np.testing.assert_allclose(updates["dense"], expected, rtol=1e-2, atol=1e-4)
