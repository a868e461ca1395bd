"""How much state a layer may hold before its user is asked."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from mbf_optax._estimators.estimator import Estimator
from mbf_optax._estimators.table import estimator_of
from mbf_optax._partition.bounds import FLOATS
from mbf_optax._partition.layer import Layer, Reading

_MOMENTS = 2  # floats a parameter that Adam holds
_SILENT_BYTES = 10**9  # what a layer may hold without being asked about


def floats(estimator: Estimator) -> int:
  """Floats that a layer's moments, statistics and inverses hold."""
  reading = estimator.reading
  unnamed = reading._replace(path="", bias_path=reading.bias_path and "bias")
  return _MOMENTS * reading.elements + _of_state(unnamed)


@functools.lru_cache
def _of_state(reading: Reading) -> int:
  """Of the estimator's own state. Layers of a network are often alike."""
  state = jax.eval_shape(lambda: estimator_of(reading).init(jnp.float32))
  return sum(leaf.size for leaf in jax.tree.leaves(state))


def check_size(estimators: Iterable[Estimator]) -> None:
  """Raises a ``ValueError`` for a layer that would hold very much.

  That is more than 40 floats a parameter and more than a gigabyte in float32. What the
  partitions choose by themselves never does; a :class:`Layer`, an override or a limit
  of the user's may.
  """
  for estimator in estimators:
    reading, held = estimator.reading, floats(estimator)
    if held <= FLOATS * reading.elements or 4 * held <= _SILENT_BYTES:
      continue
    raise ValueError(
      f"mbf_optax: {reading.describe()} would hold {4 * held / 1e9:,.1f} GB,"
      f" {held / reading.elements:,.0f} floats a parameter where Adam holds"
      f' {_MOMENTS}. Read it as "shared" with a block_limit of'
      f" {Layer.block_limit} or less, along other block_axes, or as"
      ' "rms", with an override.'
    )
