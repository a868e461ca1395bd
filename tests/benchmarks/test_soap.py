"""SOAP against a float64 NumPy loop; its second moment; many layers in one program."""

import subprocess
import sys

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
  """Shapes of full-rank first statistics: a null space has no basis of its own."""
  gradients = random_gradients(SHAPES, STEPS)
  tx = scale_by_soap(B1, B2, EPS, FREQUENCY, LONGEST)
  found, state = run(tx, gradients)
  assert [len(m) for m in state.basis.values()] == [0, 3, 2, 1]
  for name in SHAPES:
    arrays = [np.float64(gradient[name]) for gradient in gradients]
    for updates, expected in zip(found, reference(arrays), strict=True):
      np.testing.assert_allclose(updates[name], expected, rtol=2e-3, atol=2e-3)


def test_second_moment_is_kept_when_the_basis_is_renewed():
  """A rotation keeps a gradient's norm, so the sum of all ``V`` follows its average."""
  gradients = random_gradients({"dense": (4, 3)}, STEPS)
  total = 0.0
  for step in range(1, STEPS):
    total = B2 * total + (1 - B2) * np.sum(np.float64(gradients[step]["dense"]) ** 2)
  _, state = run(scale_by_soap(B1, B2, EPS, FREQUENCY), gradients)
  np.testing.assert_allclose(state.second_moment["dense"].sum(), total, rtol=1e-4)
  for basis in state.basis["dense"]:
    np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)


_DEEP = """
import jax, jax.numpy as jnp
from benchmarks.baselines import soap

params = {f"layer{i}": jnp.ones((20 + i, 30 + i)) for i in range(10)}
key = jax.random.key(0)
gradients = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)

def train(rate):
  tx = soap(rate, frequency=2)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(gradients, state, params)
    return (jax.tree.map(jnp.add, params, updates), state), None

  (final, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=9)
  return final

grid = jax.jit(jax.vmap(train))(jnp.array([1e-3, 1e-2]))
assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grid))
"""


@pytest.mark.slow
def test_many_layers_in_one_program_return():
  """Batched LAPACK calls never return from such a program in some jaxlib releases."""
  subprocess.run([sys.executable, "-c", _DEEP], check=True, timeout=300)
