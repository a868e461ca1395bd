"""Matrices of nearly equal order from all layers, joined into one batch and cut again.

So the compiled program grows with the number of distinct orders and not with the depth
of the network. With several devices every layer stays by itself: joining would undo
each layer's sharding.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import triangles
from mbf_optax._linalg.statistics import (
  Regularizer,
  Statistics,
  Stored,
  batch_of,
  joint,
)
from mbf_optax._linalg.sweep import padded_order
from mbf_optax._tree.shapes import Array, Bool, Float, Int

_NEARBY, _NEARBY_IF_SMALL, _SMALL = 0.1, 0.25, 128
"""Share of an order that padding may add, so that fewer orders have to be compiled.

Work grows with the cube of the order, and orders of up to 128 have little of it.
"""


class Matrices(NamedTuple):
  """Symmetric positive definite matrices ``scale G + shift I`` of one layer.

  Attributes:
    statistics: ``G``.
    is_packed: whether they are packed triangles.
    scale: of the rank of ``batch``.
    shift: likewise; a lower bound of the eigenvalues.
    order: number of rows without padding.
    as_factor: whether ``L^(-1)`` of the packed ``A = L L^T`` is wanted for ``A^(-1)``.
  """

  statistics: Stored
  is_packed: bool
  scale: Float[Array, "*#batch"]
  shift: Float[Array, "*#batch"]
  order: Int[np.ndarray, "*#batch"] | int = 1
  as_factor: bool = False

  @property
  def batch(self) -> tuple[int, ...]:
    """Shape of the batch."""
    return batch_of(self.statistics, self.is_packed)


System = TypeVar("System", Matrices, Statistics)
"""Matrices of one side of a layer, regularized or not."""


class Results(NamedTuple):
  """Inverses or powers of a layer's matrices.

  Attributes:
    values: where a new one is not finite, the previous.
    is_new: whether each matrix has a new one.
    shift: of inverses, as it came with the matrices.
  """

  values: Stored
  is_new: Bool[Array, "*batch"]
  shift: Float[Array, "*#batch"] | float = 0.0


class Part(NamedTuple):
  """Matrices of one layer, or of many as one flat batch.

  Attributes:
    members: positions of the layers.
    statistics: as in :class:`Matrices`.
    scale: likewise.
    shift: likewise.
    order: likewise.
  """

  members: tuple[int, ...]
  statistics: Stored
  scale: Float[Array, "*batch"]
  shift: Float[Array, "*batch"]
  order: Int[np.ndarray, "*batch"]

  def matrices(self, group: "Group", more: Float[Array, "*#batch"] | int = 0) -> Stored:
    """``scale G + (shift + more) I``."""
    scaled = times(group, self.scale, self.statistics)
    return scaled + identities(group, self.shift + more, self.statistics)

  def repeated(self, group: "Group", shifts: Float[Array, "k *batch"]) -> "Part":
    """``k`` copies with further shifts, along a leading axis of the batch."""
    axis = 1 if group.is_packed else 0
    shape = list(self.statistics.shape)
    shape.insert(axis, len(shifts))
    statistics = jnp.broadcast_to(jnp.expand_dims(self.statistics, axis), shape)
    scale = jnp.broadcast_to(self.scale[None], shifts.shape)
    return self._replace(
      statistics=statistics, scale=scale, shift=self.shift[None] + shifts
    )


class Group(NamedTuple):
  """Parts whose matrices have one order and go through one program."""

  is_packed: bool
  as_factor: bool
  parts: list[Part]


def groups_of(
  systems: Sequence[System],
  part_of: Callable[[tuple[int, ...], list[System]], Part],
) -> list[Group]:
  """Layers of nearly one order, one layout and one dtype, in the order of the first.

  With several devices each layer of wide matrices is a group of its own.

  Args:
    systems: one entry a layer.
    part_of: :func:`part_of_matrices` or :func:`part_of_statistics`, given the positions
      of some layers and the layers.
  """
  found = collections.defaultdict(list)
  leaders = _leaders([a.statistics.shape[-1] for a in systems if not a.is_packed])
  for index, system in enumerate(systems):
    found[_kind(index, system, leaders)].append(index)
  groups = []
  for indices in found.values():
    first = systems[indices[0]]
    each = [tuple(indices)] if may_join() else [(index,) for index in indices]
    parts = [part_of(members, [systems[i] for i in members]) for members in each]
    groups.append(Group(first.is_packed, first.as_factor, parts))
  return groups


def _leaders(orders: Sequence[int]) -> dict[int, int]:
  """The padded order that every order is inverted with: the largest one close to it."""
  found: dict[int, int] = {}
  leader = 0
  for n in sorted(set(orders), reverse=True):
    order = padded_order(n)
    nearby = _NEARBY_IF_SMALL if leader <= _SMALL else _NEARBY
    if order < (1 - nearby) * leader or not leader:
      leader = order
    found[n] = leader
  return found


def _kind(
  index: int, system: Matrices | Statistics, leaders: Mapping[int, int]
) -> tuple[bool, bool, int, jnp.dtype, int]:
  """What the layers of a group have in common."""
  statistics = system.statistics
  if system.is_packed:
    return True, system.as_factor, len(statistics), statistics.dtype, -1
  alone = -1 if may_join() else index
  return False, False, leaders[statistics.shape[-1]], statistics.dtype, alone


def may_join() -> bool:
  """Whether batches of different layers may become one."""
  return jax.device_count() == 1


def part_of_matrices(members: tuple[int, ...], layers: list[Matrices]) -> Part:
  """Layers that are regularized already."""
  statistics = joined([a.statistics for a in layers], layers[0].is_packed)
  order = joint([np.asarray(a.order) for a in layers], [a.batch for a in layers])
  scale = _flat([jnp.broadcast_to(a.scale, a.batch) for a in layers])
  shift = _flat([jnp.broadcast_to(a.shift, a.batch) for a in layers])
  return Part(members, statistics, scale, shift, order)


def part_of_statistics(
  members: tuple[int, ...], layers: list[Statistics], regularize: Regularizer
) -> Part:
  """Layers that are regularized as one, matrix by matrix."""
  first, batches = layers[0], [a.batch for a in layers]
  order = joint([a.order for a in layers], batches)
  sharers = joint([np.asarray(a.sharers) for a in layers], batches)
  statistics = joined([a.statistics for a in layers], first.is_packed)
  whole = Statistics(statistics, first.is_packed, order, sharers, ())
  scale, shift = (jnp.broadcast_to(v, whole.batch) for v in regularize(whole.spectrum))
  return Part(members, statistics, scale, shift, order)


def _flat(values: list[Float[Array, "..."]]) -> Float[Array, "..."]:
  """A number for every matrix, of one layer or of several as one flat batch."""
  if len(values) == 1:
    return values[0]
  return jnp.concatenate([value.reshape(-1) for value in values])


def joined(
  values: Sequence[Float[Array, "..."]], is_packed: bool
) -> Float[Array, "..."]:
  """Matrices of some layers as those of one, padded to the largest order."""
  if len(values) == 1:
    return values[0]
  if is_packed:
    return jnp.concatenate([v.reshape(len(v), -1) for v in values], axis=1)
  order = max(v.shape[-1] for v in values)
  return jnp.concatenate([_padded(v, order) for v in values])


def _padded(
  statistics: Float[Array, "*batch n n"], order: int
) -> Float[Array, "matrices {order} {order}"]:
  """Matrices with one axis for the batch, padded with zeros."""
  n = statistics.shape[-1]
  margin = [(0, 0)] * (statistics.ndim - 2) + [(0, order - n)] * 2
  padded = jnp.pad(statistics, margin) if order > n else statistics
  return padded.reshape(-1, order, order)


def times(group: Group, factor: Float[Array, "*batch"], matrices: Stored) -> Stored:
  """Matrices multiplied by a factor each."""
  return (factor[None] if group.is_packed else factor[..., None, None]) * matrices


def identities(group: Group, factor: Float[Array, "*batch"], like: Stored) -> Stored:
  """Multiples of the identity in the shape of other matrices."""
  if group.is_packed:
    n = triangles.unpacked_size(len(like))
    return factor[None] * triangles.identity(n, like.shape[1:], like.dtype)
  eye = jnp.eye(like.shape[-1], dtype=like.dtype)
  return factor[..., None, None] * eye.reshape(*[1] * (like.ndim - 2), *eye.shape)


def split(joined: Array, sizes: list[int], axis: int) -> list[Array]:
  """A part's batch, cut into those of its layers."""
  if len(sizes) == 1:
    return [joined]
  return jax.lax.platform_dependent(
    joined,
    cpu=functools.partial(_split_on_cpu, sizes=sizes, axis=axis),
    default=lambda joined: jnp.split(joined, ends_of(sizes), axis=axis),
  )


def _split_on_cpu(joined: Array, sizes: list[int], axis: int) -> list[Array]:
  """:func:`split` with one kernel for all parts of one size.

  XLA compiles a kernel for every constant offset, which was a third of a deep network's
  compile time. It cannot constant-fold offsets returned from a conditional.
  """
  starts = [jnp.uint32(start) for start in (0, *ends_of(sizes))]
  offsets = jax.lax.cond(
    jax.lax.optimization_barrier(jnp.array(False)),
    lambda: [jnp.zeros_like(start) for start in starts],
    lambda: starts,
  )
  return [
    jax.lax.dynamic_slice_in_dim(joined, offset, size, axis)
    for offset, size in zip(offsets, sizes, strict=True)
  ]


def ends_of(sizes: list[int]) -> list[int]:
  """Where to split so that the parts have the given sizes."""
  return list(itertools.accumulate(sizes[:-1]))
