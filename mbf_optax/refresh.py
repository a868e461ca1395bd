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

from mbf_optax import packed, placement
from mbf_optax.estimators import Inverses, Matrices
from mbf_optax.inverse import pad, padded_order, spd_inverse

Method = Literal["sweep", "linalg"]


def invert(
  systems: Sequence[Matrices], previous: Sequence[jax.Array], method: Method = "sweep"
) -> list[Inverses]:
  """Inverses of every layer's damped matrices.

  Args:
    systems: one entry a layer.
    previous: the layers' inverses so far, in the shapes of ``systems``.
    method: ``"sweep"`` for plain XLA operations, ``"linalg"`` for
      ``jnp.linalg.inv``.

  Returns:
    The inverses in the order of ``systems``.
  """
  groups = collections.defaultdict(list)
  for index, system in enumerate(systems):
    groups[_group(index, system)].append(index)
  inverses: dict[int, Inverses] = {}
  for (is_packed, *_), members in groups.items():
    invert_group = _invert_packed if is_packed else _invert_matrices
    values = [systems[index].values for index in members]
    old = [previous[index] for index in members]
    inverses.update(zip(members, invert_group(values, old, method), strict=True))
  return [inverses[index] for index in range(len(systems))]


def _group(index: int, system: Matrices) -> tuple[bool, int, jnp.dtype, int]:
  """What the layers that are inverted together have in common.

  Layers with a matrix for every block are on their own, because joining their batches
  would tear them from the devices that they are divided over.
  """
  values = system.values
  if system.is_packed:
    return True, values.shape[0], values.dtype, -1
  many = values.ndim - 2 > system.damping.ndim
  return False, padded_order(values.shape[-1]), values.dtype, index if many else -1


def _invert_packed(
  values: list[jax.Array], previous: list[jax.Array], method: Method
) -> list[Inverses]:
  new = _linalg_packed(values) if method == "linalg" else packed.inverse(values)
  inverses = []
  for fresh, old in zip(new, previous, strict=True):
    accepted = jnp.all(jnp.isfinite(fresh), axis=0)
    inverses.append(Inverses(jnp.where(accepted[None], fresh, old), accepted))
  return inverses


def _linalg_packed(values: list[jax.Array]) -> list[jax.Array]:
  """One batched call for all of them."""
  flat = jnp.concatenate([v.reshape(v.shape[0], -1) for v in values], axis=1)
  batch = jnp.moveaxis(packed.unpack(flat), -1, 0)
  new = packed.pack(jnp.moveaxis(jax.vmap(jnp.linalg.inv)(batch), 0, -1))
  parts = jnp.split(new, _ends([v[0].size for v in values]), axis=1)
  return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]


def _invert_matrices(
  values: list[jax.Array], previous: list[jax.Array], method: Method
) -> list[Inverses]:
  order = max(v.shape[-1] for v in values)
  batches = [pad(v, order) for v in values]
  if len(batches) > 1:
    batches = [batch.reshape(-1, order, order) for batch in batches]
  batch = placement.whole(jnp.concatenate(batches))
  new = jnp.linalg.inv(batch) if method == "linalg" else spd_inverse(batch)
  parts = jnp.split(placement.whole(new), _ends([len(b) for b in batches]))
  inverses = []
  for part, old in zip(parts, previous, strict=True):
    n = old.shape[-1]
    part = part.reshape(*old.shape[:-2], order, order)
    accepted = jnp.all(jnp.isfinite(part), axis=(-2, -1))
    part = jnp.where(accepted[..., None, None], part[..., :n, :n], old)
    inverses.append(Inverses(part, accepted))
  return inverses


def _ends(sizes: list[int]) -> list[int]:
  """Where to split so that the parts have the given sizes."""
  return list(itertools.accumulate(sizes[:-1]))
