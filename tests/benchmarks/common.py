"""Trees of gradients and runs that the baselines' tests share."""

import jax
import jax.numpy as jnp
import numpy as np


def _is_shape(node):
  return isinstance(node, tuple)


def random_gradients(shapes, steps, is_leaf=_is_shape):
  """``steps`` trees of normal numbers in float32."""
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(lambda s: jnp.float32(rng.normal(size=s)), shapes, is_leaf=is_leaf)
    for _ in range(steps)
  ]


def run(tx, gradients, **extra):
  """The updates of all gradients in turn, and the last state.

  ``extra`` holds extra arguments of the update, a list of one entry a step each.
  """
  state, update = jax.jit(tx.init)(gradients[0]), jax.jit(tx.update)
  results = []
  for step, gradient in enumerate(gradients):
    now = {name: values[step] for name, values in extra.items()}
    updates, state = update(gradient, state, **now)
    results.append(updates)
  return results, state
