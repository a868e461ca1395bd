"""What the zoos of layers share: inputs, readings written shortly, and the check."""

import jax
import jax.numpy as jnp

import mbf_optax
from tests._partition.traced import array

KEY = jax.random.key(0)
ROWS = array(5, 6)  # a batch of 5 rows of 6 features
SEQUENCES = array(2, 5, 6)
LINE, IMAGES, VOLUMES = array(2, 8, 6), array(2, 8, 8, 6), array(2, 8, 8, 8, 6)
HEADS = array(2, 5, 2, 3)
TOKENS = array(2, 5, dtype=jnp.int32)


def dense(*axes, bias=None, stack=()):
  return (axes, stack, "auto", bias)


def kernel(*axes, estimator="auto", stack=()):
  return (axes, stack, estimator, None)


def check(loss, params, args, expected):
  partition = mbf_optax.traced_partition(loss, params, *args)
  found = {
    r.path: (r.layer.block_axes, r.layer.stack_axes, r.layer.estimator, r.bias_path)
    for r in partition(params)
    if not r.layer.elementwise
  }
  assert found == expected
  assert partition.unread == ()


def size(outputs):
  """The mean square of all that a layer returns."""
  leaves = [leaf for leaf in jax.tree.leaves(outputs) if leaf.dtype == jnp.float32]
  return sum(jnp.mean(leaf**2) for leaf in leaves)


# Flax Linen.
