"""Inverses and powers of many layers' matrices at once."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import shifts, triangles
from mbf_optax._linalg.groups import (
  Group,
  Matrices,
  Part,
  Results,
  ends_of,
  groups_of,
  identities,
  may_join,
  part_of_matrices,
  part_of_statistics,
  split,
  times,
)
from mbf_optax._linalg.methods import Method, invert
from mbf_optax._linalg.products import diagonals
from mbf_optax._linalg.rows import row_scales
from mbf_optax._linalg.statistics import Regularizer, Statistics, Stored, joint
from mbf_optax._tree.shapes import Array, Bool, Float, Int

_FEW, _FEW_ON_CUDA = 2**17, 2**22
"""Floats of all matrices up to which their shifted inverses are computed at once.

A GPU takes as long for 150 matrices of 129 rows as for 30.
"""

_OfParts = list[list[Float[Array, "..."]]]
"""One array for every part of every group."""


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
  groups = groups_of(systems, part_of_matrices)
  new = [
    invert(group, [part.matrices(group) for part in group.parts], method)
    for group in groups
  ]
  results = _results(systems, groups, new, previous)
  return [r._replace(shift=a.shift) for r, a in zip(results, systems, strict=True)]


class Exponents(NamedTuple):
  """Exponents of many layers' matrices.

  Attributes:
    values: all of them.
    indices: for every layer, which of them its matrices have, ``(*stack,)``.
  """

  values: Float[Array, "k"]
  indices: list[Int[np.ndarray, "..."]]

  def of(self, part: Part, systems: Sequence[Statistics]) -> Float[Array, "*batch"]:
    """The exponent of every matrix of a part."""
    batches = [systems[i].batch for i in part.members]
    own = [self.indices[i] for i in part.members]
    aligned = [
      index.reshape((*index.shape, *[1] * (len(batch) - index.ndim)))
      for index, batch in zip(own, batches, strict=True)
    ]
    return self.values[joint(aligned, batches)]


def row_scaled_powers(
  systems: Sequence[Statistics],
  regularize: Regularizer,
  exponents: Exponents,
  previous: Sequence[Float[Array, "..."]],
  method: Method = "sweep",
) -> list[Results]:
  r"""``F A^(-p) F`` of every layer's matrices, with ``p`` in ``[0, 1]``.

  ``F`` are the :mod:`mbf_optax._linalg.rows` scales of ``G``, the identity where its
  diagonal is even. A sum of shifted inverses approximates the power
  (:mod:`mbf_optax._linalg.shifts`): :math:`A^{-p} \approx w_0 I + \sum_j w_j (A + s_j
  I)^{-1}`. The mean diagonal of ``scale G`` is taken to be at most one, so that the
  eigenvalues lie between ``shift`` and ``shift + order``.

  Args:
    systems: one entry a layer.
    regularize: makes ``A = scale G + shift I`` of statistics ``G`` of any layers.
    exponents: ``p`` of every layer.
    previous: the layers' powers so far, in the shapes of the statistics.
    method: as for :func:`inverses`.

  Returns:
    The powers in the order of ``systems``.
  """
  part_of = functools.partial(part_of_statistics, regularize=regularize)
  groups = groups_of(systems, part_of)
  p = [[exponents.of(part, systems) for part in group.parts] for group in groups]
  scaled = []
  for group, powers in zip(groups, _powers(groups, p, method), strict=True):
    rows = [_row_scales(group, part) for part in group.parts]
    pairs = zip(powers, rows, strict=True)
    scaled.append([power * _outer(group, f) for power, f in pairs])
  return _results(systems, groups, scaled, previous)


def _powers(groups: Sequence[Group], exponents: _OfParts, method: Method) -> _OfParts:
  """``A^(-p)`` of the parts of every group."""
  poles, weights = _expansions(groups, exponents)
  floats = sum(part.statistics.size for group in groups for part in group.parts)
  at_once = functools.partial(_at_once, groups, poles, weights, method)
  in_turn = functools.partial(_in_turn, groups, poles, weights, method)
  if not may_join() or floats > _FEW_ON_CUDA:
    return in_turn()
  if floats <= _FEW:
    return at_once()
  return jax.lax.platform_dependent(cuda=at_once, default=in_turn)


def _at_once(
  groups: Sequence[Group], poles: _OfParts, weights: _OfParts, method: Method
) -> _OfParts:
  """All shifted inverses as one batch.

  A loop over pivots takes as long for a few small matrices as for one.
  """
  sums = []
  for group, s, w in zip(groups, poles, weights, strict=True):
    repeated = [p.repeated(group, k) for p, k in zip(group.parts, s, strict=True)]
    inverses = invert(group, [part.matrices(group) for part in repeated], method)
    sums.append(
      [
        _weighted(group, part, v, found)
        for part, v, found in zip(group.parts, w, inverses, strict=True)
      ]
    )
  return sums


def _weighted(
  group: Group,
  part: Part,
  weights: Float[Array, "terms *batch"],
  inverses: Float[Array, "..."],
) -> Stored:
  """``w_0 I + sum_j w_j A_j``; a reduction over ``j`` is slower on a CPU than a sum."""
  total = identities(group, weights[0], part.statistics)
  for j in range(shifts.POLES):
    inverse = inverses[:, j] if group.is_packed else inverses[j]
    total = total + times(group, weights[j + 1], inverse)
  return total


def _in_turn(
  groups: Sequence[Group], poles: _OfParts, weights: _OfParts, method: Method
) -> _OfParts:
  """One shifted inverse after the other, which holds one copy of the matrices."""

  def add(j: Int[Array, ""], sums: _OfParts) -> _OfParts:
    new = []
    for group, s, w, total in zip(groups, poles, weights, sums, strict=True):
      shifted = [
        part.matrices(group, pole[j]) for part, pole in zip(group.parts, s, strict=True)
      ]
      found = zip(total, w, invert(group, shifted, method), strict=True)
      new.append([old + times(group, v[j + 1], inv) for old, v, inv in found])
    return new

  start = [
    [identities(g, w[0], p.statistics) for w, p in zip(of_group, g.parts, strict=True)]
    for g, of_group in zip(groups, weights, strict=True)
  ]
  return jax.lax.fori_loop(0, shifts.POLES, add, start)


def _row_scales(group: Group, part: Part) -> Float[Array, "n *batch"]:
  diagonals_of = triangles.diagonal if group.is_packed else diagonals
  order = jnp.asarray(part.order, part.statistics.dtype)
  return row_scales(diagonals_of(part.statistics), order, part.scale)


def _outer(group: Group, rows: Float[Array, "n *batch"]) -> Stored:
  """``f f^T`` in the layout of the group's matrices."""
  if group.is_packed:
    return triangles.outer(rows)
  rows = jnp.moveaxis(rows, 0, -1)
  return rows[..., :, None] * rows[..., None, :]


def _expansions(
  groups: Sequence[Group], exponents: _OfParts
) -> tuple[_OfParts, _OfParts]:
  """Shifts ``(poles, *batch)`` and weights ``(terms, *batch)`` of every part.

  They are computed for all parts in one array, and never for a layer by itself: a deep
  network would otherwise spend most of its compile time on them.
  """
  parts = [part for group in groups for part in group.parts]
  widest = jnp.result_type(*(part.shift for part in parts))
  p, least = (
    jnp.concatenate([values.astype(widest).reshape(-1) for values in each])
    for each in (itertools.chain(*exponents), [part.shift for part in parts])
  )
  orders = np.concatenate([part.order.reshape(-1) for part in parts])
  order = jnp.asarray(orders, widest)
  bound = 1 + order / least
  poles = least[None] * shifts.poles(bound)
  # A^(-p) = l^(-p) (A / l)^(-p), and l^(-1) (A / l + s)^(-1) is (A + l s)^(-1).
  weights = (least**-p)[None] * shifts.weights(p, bound)
  weights = weights.at[1:].multiply(least[None])
  ends = ends_of([part.shift.size for part in parts])

  def apart(joined: Float[Array, "k matrices"]) -> list[list[Float[Array, "k ..."]]]:
    pieces = iter(jnp.split(joined, ends, axis=1))
    return [
      [
        next(pieces).reshape(len(joined), *part.shift.shape).astype(part.shift.dtype)
        for part in group.parts
      ]
      for group in groups
    ]

  return apart(poles), apart(weights)


def _results(
  systems: Sequence[Matrices] | Sequence[Statistics],
  groups: Sequence[Group],
  new: Sequence[Sequence[Float[Array, "..."]]],
  previous: Sequence[Float[Array, "..."]],
) -> list[Results]:
  """Each layer's own matrices, the previous ones where the new are not finite."""
  results: dict[int, Results] = {}
  for group, values in zip(groups, new, strict=True):
    axes = (0,) if group.is_packed else (-2, -1)
    for part, value in zip(group.parts, values, strict=True):
      is_new = jnp.all(jnp.isfinite(value), axis=axes)
      sizes = [math.prod(systems[index].batch) for index in part.members]
      apart = split(value, sizes, 1 if group.is_packed else 0)
      for index, own, is_its in zip(
        part.members, apart, split(is_new, sizes, 0), strict=True
      ):
        system = systems[index]
        n = system.statistics.shape[-1]
        own = own if group.is_packed else own[..., :n, :n]
        own, is_its = own.reshape(system.statistics.shape), is_its.reshape(system.batch)
        own = jnp.where(_beside(group, is_its), own, previous[index])
        results[index] = Results(own, is_its)
  return [results[index] for index in range(len(systems))]


def _beside(
  group: Group, values: Bool[Array, "*batch"]
) -> Bool[Array, "1 *batch"] | Bool[Array, "*batch 1 1"]:
  """A value for each matrix, ready to broadcast against their elements."""
  return values[None] if group.is_packed else values[..., None, None]
