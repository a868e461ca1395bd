"""Inverses and powers of many layers' matrices at once.

Matrices of equal order from all layers go through one batch, so that the compiled
program grows with the number of distinct orders and not with the depth of the network.
With several devices every layer is inverted by itself: joining would undo each layer's
sharding.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import shifts, triangles
from mbf_optax._linalg.sweep import pad, padded_order, spd_inverse
from mbf_optax._mesh import devices
from mbf_optax._tree.shapes import Array, Bool, Float, Int

Method = Literal["sweep", "linalg"]

Stored = Float[Array, "t *batch"] | Float[Array, "*batch n n"]
"""Symmetric matrices: packed triangles, or whole matrices."""


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
    shape = self.statistics.shape
    return shape[1:] if self.is_packed else shape[:-2]


class Results(NamedTuple):
  """Inverses or powers of a layer's matrices.

  Attributes:
    values: where a new one is not finite, the previous.
    accepted: whether each matrix has a new one.
    shift: as it came with the matrices.
  """

  values: Stored
  accepted: Bool[Array, "*batch"]
  shift: Float[Array, "*#batch"]


def inverses(
  systems: Sequence[Matrices],
  previous: Sequence[Float[Array, "..."]],
  method: Method = "sweep",
) -> list[Results]:
  """``A^(-1)`` of every layer's matrices.

  Args:
    systems: one entry a layer.
    previous: the layers' inverses so far, in the shapes of the statistics.
    method: ``"sweep"`` for plain XLA operations, ``"linalg"`` for
      ``jnp.linalg.inv``.

  Returns:
    The inverses in the order of ``systems``.
  """
  groups = _groups(systems)
  new = [
    _invert(group, [part.matrices(group) for part in group.parts], method)
    for group in groups
  ]
  return _results(systems, groups, new, previous)


def inverse_powers(
  systems: Sequence[Matrices],
  exponents: Sequence[Float[Array, "..."]],
  previous: Sequence[Float[Array, "..."]],
  method: Method = "sweep",
) -> list[Results]:
  r"""``A^(-p)`` of every layer's matrices, with ``p`` in ``[0, 1]``.

  A sum of shifted inverses approximates the power (:mod:`mbf_optax._linalg.shifts`):
  :math:`A^{-p} \approx w_0 I + \sum_j w_j (A + s_j I)^{-1}`. The mean diagonal of
  ``scale G`` is taken to be at most one, so that the eigenvalues lie between ``shift``
  and ``shift + order``.

  Args:
    systems: one entry a layer.
    exponents: ``p`` of every layer; broadcasts against its batch and has its rank.
    previous: the layers' powers so far, in the shapes of the statistics.
    method: as for :func:`inverses`.

  Returns:
    The powers in the order of ``systems``.
  """
  groups = _groups(systems)
  poles, weights = _expansions(systems, exponents)
  of_parts = [[part.joined(systems, poles) for part in g.parts] for g in groups]
  factors = [[part.joined(systems, weights) for part in g.parts] for g in groups]

  def add(j: Int[Array, ""], sums: list[list[Array]]) -> list[list[Array]]:
    new = []
    for group, s, w, total in zip(groups, of_parts, factors, sums, strict=True):
      shifted = [
        part.matrices(group, pole[j]) for part, pole in zip(group.parts, s, strict=True)
      ]
      found = zip(total, w, _invert(group, shifted, method), strict=True)
      new.append([old + _times(group, v[j + 1], inv) for old, v, inv in found])
    return new

  start = [
    [_identities(g, w[0], p.statistics) for w, p in zip(of_group, g.parts, strict=True)]
    for g, of_group in zip(groups, factors, strict=True)
  ]
  powers = jax.lax.fori_loop(0, shifts.POLES, add, start)
  return _results(systems, groups, powers, previous)


class _Part(NamedTuple):
  """Matrices of one layer, or of many as one flat batch.

  Attributes:
    members: positions of the layers.
    statistics: as in :class:`Matrices`.
    scale: likewise.
    shift: likewise.
  """

  members: tuple[int, ...]
  statistics: Stored
  scale: Float[Array, "*batch"]
  shift: Float[Array, "*batch"]

  def matrices(
    self, group: "_Group", more: Float[Array, "*#batch"] | int = 0
  ) -> Stored:
    """``scale G + (shift + more) I``."""
    scaled = _times(group, self.scale, self.statistics)
    return scaled + _identities(group, self.shift + more, self.statistics)

  def joined(
    self, systems: Sequence[Matrices], values: Sequence[Float[Array, "k ..."]]
  ) -> Float[Array, "k *batch"]:
    """Values of the members, in the shape of their joint batch."""
    full = [
      jnp.broadcast_to(values[i], (len(values[i]), *systems[i].batch))
      for i in self.members
    ]
    if len(full) == 1:
      return full[0]
    return jnp.concatenate([v.reshape(len(v), -1) for v in full], axis=1)


class _Group(NamedTuple):
  """Parts whose matrices have one order and go through one program."""

  is_packed: bool
  as_factor: bool
  parts: list[_Part]


def _groups(systems: Sequence[Matrices]) -> list[_Group]:
  found = collections.defaultdict(list)
  for index, system in enumerate(systems):
    found[_kind(index, system)].append(index)
  groups = []
  for indices in found.values():
    first = systems[indices[0]]
    each = [tuple(indices)] if _may_join() else [(index,) for index in indices]
    parts = [_part(systems, members) for members in each]
    groups.append(_Group(first.is_packed, first.as_factor, parts))
  return groups


def _kind(index: int, system: Matrices) -> tuple[bool, bool, int, jnp.dtype, int]:
  """What the layers of a group have in common."""
  statistics = system.statistics
  if system.is_packed:
    return True, system.as_factor, len(statistics), statistics.dtype, -1
  alone = -1 if _may_join() else index
  return False, False, padded_order(statistics.shape[-1]), statistics.dtype, alone


def _may_join() -> bool:
  """Whether batches of different layers may become one."""
  return jax.device_count() == 1


def _part(systems: Sequence[Matrices], members: tuple[int, ...]) -> _Part:
  layers = [systems[index] for index in members]
  scale = [jnp.broadcast_to(a.scale, a.batch) for a in layers]
  shift = [jnp.broadcast_to(a.shift, a.batch) for a in layers]
  if len(layers) == 1:
    return _Part(members, layers[0].statistics, scale[0], shift[0])
  values = [a.statistics for a in layers]
  if layers[0].is_packed:
    joined = jnp.concatenate([v.reshape(len(v), -1) for v in values], axis=1)
  else:
    order = max(v.shape[-1] for v in values)
    joined = jnp.concatenate([_flat(v, order) for v in values])
  flat_scale, flat_shift = (
    jnp.concatenate([v.reshape(-1) for v in each]) for each in (scale, shift)
  )
  return _Part(members, joined, flat_scale, flat_shift)


def _flat(
  statistics: Float[Array, "*batch n n"], order: int
) -> Float[Array, "matrices {order} {order}"]:
  """Matrices with one axis for the batch, padded with zeros."""
  n = statistics.shape[-1]
  margin = [(0, 0)] * (statistics.ndim - 2) + [(0, order - n)] * 2
  padded = jnp.pad(statistics, margin) if order > n else statistics
  return padded.reshape(-1, order, order)


def _times(group: _Group, factor: Float[Array, "*batch"], matrices: Stored) -> Stored:
  """Matrices multiplied by a factor each."""
  return (factor[None] if group.is_packed else factor[..., None, None]) * matrices


def _identities(group: _Group, factor: Float[Array, "*batch"], like: Stored) -> Stored:
  """Multiples of the identity in the shape of other matrices."""
  if group.is_packed:
    n = triangles.unpacked_size(len(like))
    return factor[None] * triangles.identity(n, like.shape[1:], like.dtype)
  eye = jnp.eye(like.shape[-1], dtype=like.dtype)
  return factor[..., None, None] * eye.reshape(*[1] * (like.ndim - 2), *eye.shape)


def _expansions(
  systems: Sequence[Matrices], exponents: Sequence[Float[Array, "..."]]
) -> tuple[list[Float[Array, "poles ..."]], list[Float[Array, "terms ..."]]]:
  """Shifts and weights of every layer's matrices.

  They are computed for all layers in one array: a deep network would otherwise spend
  most of its compile time on them.
  """
  widest = max((a.shift.dtype for a in systems), key=lambda dtype: dtype.itemsize)
  shapes, leasts, bounds, powers = [], [], [], []
  for system, exponent in zip(systems, exponents, strict=True):
    least, order, p = jnp.broadcast_arrays(
      *(jnp.asarray(v, widest) for v in (system.shift, system.order, exponent))
    )
    shapes.append(least.shape)
    leasts.append(least.reshape(-1))
    bounds.append(1 + order.reshape(-1) / leasts[-1])
    powers.append(p.reshape(-1))
  least, bound, p = map(jnp.concatenate, (leasts, bounds, powers))
  poles = least[None] * shifts.shifts(bound)
  # A^(-p) = l^(-p) (A / l)^(-p), and l^(-1) (A / l + s)^(-1) is (A + l s)^(-1).
  weights = (least**-p)[None] * shifts.weights(p, bound)
  weights = weights.at[1:].multiply(least[None])
  ends = _ends([len(part) for part in leasts])

  def apart(joined: Float[Array, "k matrices"]) -> list[Float[Array, "k ..."]]:
    return [
      part.reshape(len(joined), *shape).astype(system.shift.dtype)
      for part, shape, system in zip(
        jnp.split(joined, ends, axis=1), shapes, systems, strict=True
      )
    ]

  return apart(poles), apart(weights)


def _results(
  systems: Sequence[Matrices],
  groups: Sequence[_Group],
  new: Sequence[Sequence[Float[Array, "..."]]],
  previous: Sequence[Float[Array, "..."]],
) -> list[Results]:
  """Each layer's own matrices, the previous ones where the new are not finite."""
  results: dict[int, Results] = {}
  for group, values in zip(groups, new, strict=True):
    for part, value in zip(group.parts, values, strict=True):
      accepted = jnp.all(
        jnp.isfinite(value), axis=(0,) if group.is_packed else (-2, -1)
      )
      sizes = [math.prod(systems[index].batch) for index in part.members]
      apart = _split(value, sizes, 1 if group.is_packed else 0)
      for index, own, kept in zip(
        part.members, apart, _split(accepted, sizes, 0), strict=True
      ):
        system = systems[index]
        n = system.statistics.shape[-1]
        if not group.is_packed:
          own = own[..., :n, :n]
        own = own.reshape(system.statistics.shape)
        kept = kept.reshape(system.batch)
        fresh = jnp.where(_beside(group, kept), own, previous[index])
        results[index] = Results(fresh, kept, system.shift)
  return [results[index] for index in range(len(systems))]


def _beside(
  group: _Group, values: Bool[Array, "*batch"]
) -> Bool[Array, "1 *batch"] | Bool[Array, "*batch 1 1"]:
  """A value for each matrix, ready to broadcast against their elements."""
  return values[None] if group.is_packed else values[..., None, None]


def _invert(
  group: _Group, values: list[Float[Array, "..."]], method: Method
) -> list[Float[Array, "..."]]:
  """Inverses of a group's matrices, not finite where there is none."""
  if group.is_packed:
    function = _PACKED[method, group.as_factor]
    return [function(v) for v in values] if method == "linalg" else function(values)
  return [_invert_matrices(v, method) for v in values]


def _invert_matrices(
  matrices: Float[Array, "*batch n n"], method: Method
) -> Float[Array, "*batch n n"]:
  if method == "linalg":
    return jnp.linalg.inv(devices.whole(matrices))
  n = matrices.shape[-1]
  padded = pad(matrices, padded_order(n)) if _may_join() else matrices
  return spd_inverse(padded)[..., :n, :n]


def _split(joined: Array, sizes: list[int], axis: int) -> list[Array]:
  """A part's batch, cut into those of its layers."""
  if len(sizes) == 1:
    return [joined]
  return jax.lax.platform_dependent(
    joined,
    cpu=functools.partial(_split_on_cpu, sizes=sizes, axis=axis),
    default=lambda joined: jnp.split(joined, _ends(sizes), axis=axis),
  )


def _split_on_cpu(joined: Array, sizes: list[int], axis: int) -> list[Array]:
  """:func:`_split` with one kernel for all parts of one size.

  XLA compiles a kernel for every constant offset, which was a third of a deep network's
  compile time. It cannot constant-fold offsets returned from a conditional.
  """
  starts = [jnp.int32(start) for start in (0, *_ends(sizes))]
  offsets = jax.lax.cond(
    jax.lax.optimization_barrier(jnp.array(False)),
    lambda: [jnp.zeros_like(start) for start in starts],
    lambda: starts,
  )
  return [
    jax.lax.dynamic_slice_in_dim(joined, offset, size, axis)
    for offset, size in zip(offsets, sizes, strict=True)
  ]


def _linalg_inverse(values: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
  matrices = jnp.moveaxis(triangles.unpack(values), (0, 1), (-2, -1))
  return triangles.pack(jnp.moveaxis(jnp.linalg.inv(matrices), (-2, -1), (0, 1)))


def _linalg_factor(values: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
  matrices = jnp.moveaxis(triangles.unpack(values), (0, 1), (-2, -1))
  factors = jnp.linalg.inv(jnp.linalg.cholesky(matrices))
  # A packed triangle is read as the upper one, and the factor is lower triangular.
  return triangles.pack(jnp.moveaxis(factors, (-2, -1), (1, 0)))


_PACKED: dict[tuple[Method, bool], Callable[[Any], Any]] = {
  ("sweep", False): triangles.inverse,
  ("sweep", True): triangles.inverse_factor,
  ("linalg", False): _linalg_inverse,
  ("linalg", True): _linalg_factor,
}
"""By method, and whether the inverse's factor is wanted."""


def _ends(sizes: list[int]) -> list[int]:
  """Where to split so that the parts have the given sizes."""
  return list(itertools.accumulate(sizes[:-1]))
