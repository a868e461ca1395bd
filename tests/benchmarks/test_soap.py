"""SOAP against a float64 NumPy loop; its second moment; many layers in one program."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.baselines import scale_by_soap
from tests.benchmarks.common import random_gradients, run

SHAPES = {"bias": (3,), "conv": (2, 1, 3, 4), "dense": (4, 4), "long": (9, 2)}
B1, B2, EPS, FREQUENCY, STEPS, LONGEST = 0.9, 0.8, 1e-8, 2, 9, 8


def reference(gradients):
  """Update rule of one array with explicit Kronecker products and sorted columns."""
  shape = gradients[0].shape
  axes = [i for i, n in enumerate(shape) if 1 < n <= LONGEST and len(shape) > 1]
  statistics = {i: np.zeros((shape[i], shape[i])) for i in axes}
  bases = {i: np.eye(shape[i]) for i in axes}
  first, second = np.zeros(shape), np.zeros(shape)

  def rotation():
    """The matrix from row-major coordinates to the eigenbasis."""
    product = np.eye(1)
    for i, n in enumerate(shape):
      product = np.kron(product, bases[i].T if i in axes else np.eye(n))
    return product

  for step, gradient in enumerate(gradients):
    if step == 0:
      yield np.zeros(shape)
    else:
      to_basis = rotation()
      first = B1 * first + (1 - B1) * gradient
      rotated = (to_basis @ gradient.ravel()).reshape(shape)
      second = B2 * second + (1 - B2) * rotated**2
      root = np.sqrt(second / (1 - B2**step)) + EPS
      scaled = to_basis @ (first / (1 - B1**step)).ravel() / root.ravel()
      yield (to_basis.T @ scaled).reshape(shape)
    for i in axes:
      unfolded = np.moveaxis(gradient, i, 0).reshape(shape[i], -1)
      statistics[i] = B2 * statistics[i] + (1 - B2) * unfolded @ unfolded.T
      if step == 0:
        bases[i] = np.linalg.eigh(statistics[i])[1][:, ::-1]
      elif step % FREQUENCY == 0:
        estimates = np.diag(bases[i].T @ statistics[i] @ bases[i])
        order = np.argsort(-estimates)
        bases[i] = np.linalg.qr(statistics[i] @ bases[i][:, order])[0]
        second = second.take(order, i)


def test_follows_numpy():
  """Full-rank first statistics: otherwise the basis of their null space is arbitrary."""
  gradients = random_gradients(SHAPES, STEPS)
  tx = scale_by_soap(B1, B2, EPS, FREQUENCY, LONGEST)
  found, state = run(tx, gradients)
  assert [len(m) for m in state.basis.values()] == [0, 3, 2, 1]
  for name in SHAPES:
    arrays = [np.float64(gradient[name]) for gradient in gradients]
    for updates, expected in zip(found, reference(arrays), strict=True):
      np.testing.assert_allclose(updates[name], expected, rtol=2e-3, atol=2e-3)
