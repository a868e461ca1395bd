"""Taking turns: inverses refreshed a group of layers at a time.

A period's work is the same and its dearest step cheaper. Layers whose matrices have one
order stay together, since they are inverted as one batch.
"""

import collections
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mbf_optax.inverse import padded_order
from mbf_optax.layers import Reading


def groups(readings: Sequence[Reading]) -> list[list[Reading]]:
  """The layers by the order of their matrices, what costs most first."""
  found = collections.defaultdict(list)
  for reading in readings:
    found[padded_order(reading.block_size)].append(reading)
  return sorted(found.values(), key=lambda group: -sum(map(_operations, group)))


def _operations(reading: Reading) -> int:
  """Of the layer's inverses, as far as groups are compared by it."""
  is_shared = reading.layer.estimator == "shared"
  matrices = math.prod(reading.stack_shape) if is_shared else reading.blocks
  return matrices * reading.block_size**3


def phases(count: int, statistics: jax.Array, inverse: jax.Array) -> list[jax.Array]:
  """When in a period each of ``count`` groups has its turn.

  Groups lie as far apart as the period allows and, if it is a whole multiple of that of
  the statistics, on updates that take some, so that no inverse is made of old ones. If
  there are more groups than turns, what costs least joins what costs most last.

  Args:
    count: number of groups, dearest first.
    statistics: updates between statistics, ``()`` int32.
    inverse: updates between inverses, ``()`` int32.

  Returns:
    For each group the remainder of the update's number by ``inverse``.
  """
  turns = jnp.maximum(inverse // statistics, 1)
  apart = jnp.maximum(turns // max(count, 1), 1)
  places = [index * apart % (2 * turns) for index in range(count)]
  return [statistics * jnp.minimum(p, 2 * turns - 1 - p) for p in places]
