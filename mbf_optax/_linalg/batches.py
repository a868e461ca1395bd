"""Inverses and powers of many layers' matrices at once.

Matrices of equal order from all layers are inverted in one batch, so that the compiled
program grows with the number of distinct orders and not with the depth of the network.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbf_optax._linalg import shifts, triangles
from mbf_optax._linalg.sweep import pad, padded_order, spd_inverse
from mbf_optax._mesh import devices

Method = Literal["sweep", "linalg"]


class Matrices(NamedTuple):
  """Symmetric positive definite matrices of one layer.

  Attributes:
    values: packed triangles ``(n (n + 1) / 2, *batch)`` if ``is_packed``, else
      ``(*batch, n, n)``.
    is_packed: which of the two.
    least: a lower bound of the eigenvalues, what was added to the diagonal; it
      broadcasts against ``batch`` and has its rank.
    order: number of rows that are no padding, an integer array like ``least``.
    as_factor: whether ``L^(-1)`` of the packed ``A = L L^T`` is wanted for ``A^(-1)``.
  """

  values: jax.Array
  is_packed: bool
  least: jax.Array
  order: Any = 1
  as_factor: bool = False


class Results(NamedTuple):
  """What was computed of a layer's matrices.

  Attributes:
    values: in the shape of the matrices; where a new one is not finite, the previous.
    accepted: whether each matrix has a new one, in the shape of their batch.
    least: as it came with the matrices.
  """

  values: jax.Array
  accepted: jax.Array
  least: jax.Array


def inverses(
  systems: Sequence[Matrices], previous: Sequence[jax.Array], method: Method = "sweep"
) -> list[Results]:
  """``A^(-1)`` of every layer's matrices.

  Args:
    systems: one entry a layer.
    previous: the layers' inverses so far, in the shapes of ``systems``.
    method: ``"sweep"`` for plain XLA operations, ``"linalg"`` for
      ``jnp.linalg.inv``.

  Returns:
    The inverses in the order of ``systems``.
  """
  return _keep_finite(systems, _inverses(systems, method), previous)


def inverse_powers(
  systems: Sequence[Matrices],
  exponents: Sequence[jax.Array],
  previous: Sequence[jax.Array],
  method: Method = "sweep",
) -> list[Results]:
  r"""``A^(-p)`` of every layer's matrices, with ``p`` in ``[0, 1]``.

  A sum of shifted inverses approximates the power (:mod:`mbf_optax._linalg.shifts`):
  :math:`A^{-p} \approx w_0 I + \sum_j w_j (A + s_j I)^{-1}`. The matrices' mean
  diagonal is taken to be one before ``least`` was added, so that their eigenvalues lie
  between ``least`` and ``least + order``.

  Args:
    systems: one entry a layer.
    exponents: ``p`` of every layer; broadcasts against its batch and has its rank.
    previous: the layers' powers so far, in the shapes of ``systems``.
    method: as for :func:`inverses`.

  Returns:
    The powers in the order of ``systems``.
  """
  poles, weights = zip(*map(_expansion, systems, exponents), strict=True)

  def add(j: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
    shifted = [_plus_identity(a, s[j]) for a, s in zip(systems, poles, strict=True)]
    terms = zip(systems, weights, _inverses(shifted, method), sums, strict=True)
    return [total + _beside(a, w[j + 1]) * new for a, w, new, total in terms]

  start = [
    _plus_identity(a._replace(values=jnp.zeros_like(a.values)), w[0]).values
    for a, w in zip(systems, weights, strict=True)
  ]
  powers = jax.lax.fori_loop(0, shifts.POLES, add, start)
  return _keep_finite(systems, powers, previous)


def _expansion(system: Matrices, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Shifts ``(POLES, ...)`` and weights ``(POLES + 1, ...)`` of a layer's matrices."""
  dtype = system.values.dtype
  least, exponent = jnp.broadcast_arrays(system.least.astype(dtype), exponent)
  bound = 1 + jnp.asarray(system.order, dtype) / least
  poles = least[None] * shifts.shifts(bound)
  weights = shifts.weights(exponent, bound)
  # A^(-p) = l^(-p) (A / l)^(-p), and l^(-1) (A / l + s)^(-1) is (A + l s)^(-1).
  root = least**-exponent
  weights = root[None] * weights
  return poles, weights.at[1:].multiply(least[None])


def _plus_identity(system: Matrices, shift: jax.Array) -> Matrices:
  """``A + s I``."""
  values = system.values
  if system.is_packed:
    return system._replace(values=triangles.add_to_diagonal(values, shift))
  eye = jnp.eye(values.shape[-1], dtype=values.dtype)
  eye = eye.reshape(*[1] * (values.ndim - 2), *eye.shape)
  return system._replace(values=values + shift[..., None, None] * eye)


def _beside(system: Matrices, factor: jax.Array) -> jax.Array:
  """A factor for each matrix, ready to multiply their elements."""
  return factor[None] if system.is_packed else factor[..., None, None]


def _keep_finite(
  systems: Sequence[Matrices],
  new: Sequence[jax.Array],
  previous: Sequence[jax.Array],
) -> list[Results]:
  results = []
  for system, fresh, old in zip(systems, new, previous, strict=True):
    axes = (0,) if system.is_packed else (-2, -1)
    accepted = jnp.all(jnp.isfinite(fresh), axis=axes)
    values = jnp.where(_beside(system, accepted), fresh, old)
    results.append(Results(values, accepted, system.least))
  return results


def _inverses(systems: Sequence[Matrices], method: Method) -> list[jax.Array]:
  """Inverses in the order of ``systems``, not finite where there is none."""
  groups = collections.defaultdict(list)
  for index, system in enumerate(systems):
    groups[_group(index, system)].append(index)
  found: dict[int, jax.Array] = {}
  for members in groups.values():
    values = [systems[index].values for index in members]
    first = systems[members[0]]
    if first.is_packed:
      new = _invert_packed(values, method, first.as_factor)
    else:
      new = _invert_matrices(values, method)
    found.update(zip(members, new, strict=True))
  return [found[index] for index in range(len(systems))]


def _group(index: int, system: Matrices) -> tuple[bool, bool, int, jnp.dtype, int]:
  """What the layers that are inverted together have in common."""
  values = system.values
  if system.is_packed:
    return True, system.as_factor, values.shape[0], values.dtype, -1
  alone = -1 if _may_join() else index
  return False, False, padded_order(values.shape[-1]), values.dtype, alone


def _may_join() -> bool:
  """Whether batches of different layers may become one.

  One batch compiles faster than many, but with several devices joining would undo each
  layer's sharding.
  """
  return jax.device_count() == 1


def _invert_packed(
  values: list[jax.Array], method: Method, as_factor: bool
) -> list[jax.Array]:
  function = _PACKED[method, as_factor]
  if method == "linalg" or _may_join():
    return _joined(function, values)
  return function(values)


def _joined(
  function: Callable[[jax.Array], jax.Array], values: list[jax.Array]
) -> list[jax.Array]:
  """``function`` of all packed matrices as one batch."""
  new = function(jnp.concatenate([v.reshape(len(v), -1) for v in values], axis=1))
  parts = _split(new, [v[0].size for v in values])
  return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]


def _split(joined: jax.Array, sizes: list[int]) -> list[jax.Array]:
  """``joined`` cut along its second axis."""
  if len(sizes) == 1:
    return [joined]
  return jax.lax.platform_dependent(
    joined,
    cpu=functools.partial(_split_on_cpu, sizes=sizes),
    default=lambda joined: jnp.split(joined, _ends(sizes), axis=1),
  )


def _split_on_cpu(joined: jax.Array, sizes: list[int]) -> list[jax.Array]:
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
    jax.lax.dynamic_slice_in_dim(joined, offset, size, axis=1)
    for offset, size in zip(offsets, sizes, strict=True)
  ]


def _linalg_inverse(values: jax.Array) -> jax.Array:
  matrices = jnp.moveaxis(triangles.unpack(values), -1, 0)
  return triangles.pack(jnp.moveaxis(jax.vmap(jnp.linalg.inv)(matrices), 0, -1))


def _linalg_factor(values: jax.Array) -> jax.Array:
  def inverse_factor(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.inv(jnp.linalg.cholesky(matrix))

  matrices = jnp.moveaxis(triangles.unpack(values), -1, 0)
  return triangles.pack(
    jnp.moveaxis(jax.vmap(inverse_factor)(matrices), (1, 2), (1, 0))
  )


_PACKED: dict[tuple[Method, bool], Callable[[Any], Any]] = {
  ("sweep", False): triangles.inverse,
  ("sweep", True): triangles.inverse_factor,
  ("linalg", False): _linalg_inverse,
  ("linalg", True): _linalg_factor,
}
"""By method, and whether the inverse's factor is wanted."""


def _invert_matrices(values: list[jax.Array], method: Method) -> list[jax.Array]:
  order = max(v.shape[-1] for v in values)
  batches = [pad(v, order) for v in values]
  if len(batches) > 1:
    batches = [batch.reshape(-1, order, order) for batch in batches]
  batch = jnp.concatenate(batches)
  if method == "linalg":
    new = jnp.linalg.inv(devices.whole(batch))
  else:
    new = spd_inverse(batch)
  parts = jnp.split(new, _ends([len(batch) for batch in batches]))
  return [
    part.reshape(*v.shape[:-2], order, order)[..., : v.shape[-1], : v.shape[-1]]
    for part, v in zip(parts, values, strict=True)
  ]


def _ends(sizes: list[int]) -> list[int]:
  """Where to split so that the parts have the given sizes."""
  return list(itertools.accumulate(sizes[:-1]))
