"""BDF against dense Fisher matrices in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.baselines import scale_by_bdf
from tests.benchmarks.common import random_gradients, run

SHAPES = {
  "a": {"bias": (2,), "kernel": (3, 2)},
  "b": {"bias": (3,), "kernel": (2, 3)},
  "c": {"scale": (2,)},
}
EXAMPLES = 5
STEPS = 5
DAMPING, MOMENTUM, EMA = 0.1, 0.8, 0.7


def vector(tree, layer, lead=()):
  leaves = [np.float64(tree[layer][name]).reshape(*lead, -1) for name in SHAPES[layer]]
  return np.concatenate(leaves, axis=-1)


def reference(gradients, examples, periods):
  """The directions of one layer: ``examples`` are the vectors in its Fisher matrix."""
  fisher, momentum, entries = 0, 0, 0
  for step, (gradient, rows) in enumerate(zip(gradients, examples, strict=True)):
    momentum = MOMENTUM * momentum + gradient
    if step % periods[0] == 0:
      entries += 1
      mean = sum(np.outer(row, row) for row in rows) / len(rows)
      fisher = EMA * fisher + (1 - EMA) * mean
    if step % periods[1] == 0:
      damped = fisher / (1 - EMA**entries) + DAMPING * np.eye(gradient.size)
      inverse = np.linalg.inv(damped)
    yield inverse @ momentum


def batched(shapes):
  is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
  return jax.tree.map(lambda s: (EXAMPLES, *s), shapes, is_leaf=is_shape)


@pytest.mark.parametrize(("per_example", "periods"), [(False, (2, 3)), (True, (1, 2))])
def test_follows_numpy(per_example, periods):
  examples = random_gradients(batched(SHAPES), STEPS)
  gradients = [jax.tree.map(lambda g: g.mean(0), tree) for tree in examples]
  extra = {"example_gradients": examples} if per_example else {}
  found, _ = run(scale_by_bdf(DAMPING, MOMENTUM, EMA, *periods), gradients, **extra)
  for layer in SHAPES:
    means = [vector(tree, layer) for tree in gradients]
    rows = [vector(tree, layer, (EXAMPLES,)) for tree in examples]
    expected = reference(
      means, rows if per_example else [[mean] for mean in means], periods
    )
    for updates, direction in zip(found, expected, strict=True):
      np.testing.assert_allclose(
        vector(updates, layer), direction, rtol=1e-3, atol=1e-4
      )


def test_inverse_of_a_fault_is_not_taken():
  tx = scale_by_bdf(DAMPING)
  gradients = [
    {"a": {"kernel": jnp.ones((2, 2))}},
    {"a": {"kernel": jnp.full((2, 2), jnp.nan)}},
  ]
  (_, _), state = run(tx, gradients)
  assert np.isfinite(state.inverse["a"]).all()
