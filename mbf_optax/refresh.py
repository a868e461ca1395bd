"""New inverses for many layers at once.

Matrices of equal size from all layers are inverted in one batch, so that the compiled
program grows with the number of distinct sizes and not with the depth of the network.
"""

import collections
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from mbf_optax import inverse as inverse_lib
from mbf_optax import packed
from mbf_optax.estimators import Matrices

Method = Literal["sweep", "linalg"]


def invert(systems: Sequence[Matrices], method: Method = "sweep") -> list[jax.Array]:
  """Inverses of every layer's damped matrices.

  Args:
    systems: one entry a layer.
    method: ``"sweep"`` for plain XLA operations, ``"linalg"`` for
      ``jnp.linalg.inv``.

  Returns:
    The inverses in the order and the shapes of ``systems``.
  """
  groups = collections.defaultdict(list)
  for index, system in enumerate(systems):
    groups[_group(system)].append(index)
  inverses: dict[int, jax.Array] = {}
  for (is_packed, *_), members in groups.items():
    invert_group = _invert_packed if is_packed else _invert_matrices
    values = [systems[index].values for index in members]
    inverses.update(zip(members, invert_group(values, method), strict=True))
  return [inverses[index] for index in range(len(systems))]


def _group(system: Matrices) -> tuple[bool, int, jnp.dtype]:
  values = system.values
  size = (
    values.shape[0] if system.is_packed else inverse_lib.padded_order(values.shape[-1])
  )
  return system.is_packed, size, values.dtype


def _invert_packed(values: list[jax.Array], method: Method) -> list[jax.Array]:
  flat = jnp.concatenate([v.reshape(v.shape[0], -1) for v in values], axis=1)
  if method == "linalg":
    batch = jnp.moveaxis(packed.unpack(flat), -1, 0)
    inverses = packed.pack(jnp.moveaxis(jax.vmap(jnp.linalg.inv)(batch), 0, -1))
  else:
    inverses = packed.inverse(flat)
  ends = _ends([v[0].size for v in values])
  parts = jnp.split(inverses, ends, axis=1)
  return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]


def _invert_matrices(values: list[jax.Array], method: Method) -> list[jax.Array]:
  order = max(v.shape[-1] for v in values)
  padded = [inverse_lib.pad(v, order).reshape(-1, order, order) for v in values]
  batch = jnp.concatenate(padded)
  if method == "linalg":
    inverses = jax.vmap(jnp.linalg.inv)(batch)
  else:
    inverses = inverse_lib.spd_inverse(batch)
  parts = jnp.split(inverses, _ends([len(p) for p in padded]))
  return [
    part[:, : v.shape[-1], : v.shape[-1]].reshape(v.shape)
    for part, v in zip(parts, values, strict=True)
  ]


def _ends(sizes: list[int]) -> list[int]:
  """Where to split so that the parts have the given sizes."""
  return list(itertools.accumulate(sizes[:-1]))
