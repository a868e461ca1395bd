"""Readings of a whole tree, checked against its leaves."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mbf_optax._partition.layer import Partition, Reading, check_cover
from mbf_optax._partition.presets import PRESETS
from mbf_optax._partition.unknown import warn_if_mostly_elementwise
from mbf_optax._tree import paths


def readings(partition: Partition, params: Any) -> Sequence[Reading]:
  """The readings of parameters, checked to be floating and to be covered once.

  Warns where most of them are read element by element because nothing is known of them.

  Raises:
    ValueError: naming the path of a parameter that cannot be trained, is read twice or
      is left out.
  """
  leaves = paths.flatten(params)
  for path, leaf in leaves.items():
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
      what = f"is {leaf!r}" if dtype is None else f"has dtype {dtype}"
      raise ValueError(
        f"mbf_optax: the parameter {path!r} {what}; only arrays of floating or complex"
        " numbers can be trained. Leave it out: differentiate a tree without it"
        " (eqx.filter, nnx.split), or give it to optax.set_to_zero() in"
        " optax.partition."
      )
  found = partition(params)
  check_cover(found, leaves)
  reasons = dict(getattr(partition, "unread", ()))
  warn_if_mostly_elementwise(found, params, PRESETS, reasons)
  return found
