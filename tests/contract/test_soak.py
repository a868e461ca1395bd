"""A long run: nothing drifts from float64, and nothing grows."""

import jax
import jax.numpy as jnp
import numpy as np

import mbf_optax
from tests import reference

STEPS, CHECKED = 20_000, 200
SHAPES = {"dense/kernel": (3, 2), "dense/bias": (2,), "shared/kernel": (3, 2)}
BOUND = 1e-5


def oracle_layers():
  return [
    reference.Layer("dense", "dense/kernel", "dense/bias"),
    reference.Layer("dense", "shared/kernel", estimator="shared"),
  ]


def nested(flat):
  tree = {}
  for path, leaf in flat.items():
    module, name = path.split("/")
    tree.setdefault(module, {})[name] = jnp.asarray(leaf, jnp.float32)
  return tree


def test_twenty_thousand_steps():
  """The last directions are the oracle's, whose history is as long."""
  rng = np.random.default_rng(0)
  gradients = {
    path: rng.normal(size=(STEPS, *shape)).astype(np.float32)
    for path, shape in SHAPES.items()
  }
  hyper = {
    "damping": 0.1,
    "curvature_update_period": 10,
    "inverse_update_period": 100,
  }
  tx = mbf_optax.scale_by_mbf(
    partition=mbf_optax.flax_partition("full", overrides=[("shared", "shared")]),
    **hyper,
  )

  @jax.jit
  def train(state, gradients):
    def step(state, gradient):
      updates, state = tx.update(gradient, state)
      return state, updates

    return jax.lax.scan(step, state, gradients)

  def steps(first, last):
    return nested({path: leaf[first:last] for path, leaf in gradients.items()})

  state = tx.init(nested({path: leaf[0] for path, leaf in gradients.items()}))
  few, many = (train.lower(state, steps(0, n)).compile() for n in (5, STEPS // 4))
  scratch = [run.memory_analysis().temp_size_in_bytes for run in (few, many)]
  assert scratch[0] == scratch[1] > 0, scratch
  pieces, sizes = [], []
  for first in range(0, STEPS, STEPS // 4):
    state, updates = many(state, steps(first, first + STEPS // 4))
    pieces.append(jax.tree.map(np.array, updates))
    del updates
    sizes.append(sum(array.nbytes for array in jax.live_arrays()))
  assert len(set(sizes[1:])) == 1

  oracle = reference.MbfReference(oracle_layers(), **hyper)
  for k in range(STEPS):
    expected = oracle.update({path: leaf[k] for path, leaf in gradients.items()})
    if k >= STEPS - CHECKED:
      piece, index = divmod(k, STEPS // 4)
      for path, direction in expected.items():
        module, name = path.split("/")
        error = np.abs(pieces[piece][module][name][index] - direction).max()
        assert error < BOUND * np.abs(direction).max(), (k, path)
