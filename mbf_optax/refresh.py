"""New inverses for many layers at once.

Matrices of equal size from all layers are inverted in one batch, so that the compiled
program grows with the number of distinct sizes and not with the depth of the network.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
  for members in groups.values():
    values = [systems[index].values for index in members]
    old = [previous[index] for index in members]
    first = systems[members[0]]
    if first.is_packed:
      new = _invert_packed(values, old, method, first.as_factor)
    else:
      new = _invert_matrices(values, old, method)
    inverses.update(zip(members, new, strict=True))
  return [inverses[index] for index in range(len(systems))]


def _group(index: int, system: Matrices) -> tuple[bool, bool, int, jnp.dtype, int]:
  """What the layers that are inverted together have in common."""
  values = system.values
  if system.is_packed:
    return True, system.as_factor, values.shape[0], values.dtype, -1
  alone = -1 if _may_join() else index
  return False, False, padded_order(values.shape[-1]), values.dtype, alone


def _may_join() -> bool:
  """Whether batches of different layers may become one.

  One batch compiles faster than many, but with several devices it would tear the layers
  from those that they are divided over.
  """
  return jax.device_count() == 1


def _invert_packed(
  values: list[jax.Array], previous: list[jax.Array], method: Method, as_factor: bool
) -> list[Inverses]:
  function = _PACKED[method, as_factor]
  if method == "linalg" or _may_join():
    new = _joined(function, values)
  else:
    new = [_finite_or_nan(fresh) for fresh in function(values)]
  return [
    Inverses(jnp.where(jnp.isnan(fresh), old, fresh), ~jnp.isnan(fresh[0]))
    for fresh, old in zip(new, previous, strict=True)
  ]


def _joined(
  function: Callable[[jax.Array], jax.Array], values: list[jax.Array]
) -> list[jax.Array]:
  """``function`` of all packed matrices as one batch, refused ones wholly NaN."""
  new = function(jnp.concatenate([v.reshape(len(v), -1) for v in values], axis=1))
  parts = _split(_finite_or_nan(new), [v[0].size for v in values])
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
  compile time. Into the offsets that a conditional returns it does not look.
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


def _finite_or_nan(inverses: jax.Array) -> jax.Array:
  """Packed inverses, those with an element that is not finite wholly NaN."""
  accepted = jnp.all(jnp.isfinite(inverses), axis=0, keepdims=True)
  return jnp.where(accepted, inverses, jnp.nan)


def _linalg_inverse(values: jax.Array) -> jax.Array:
  matrices = jnp.moveaxis(packed.unpack(values), -1, 0)
  return packed.pack(jnp.moveaxis(jax.vmap(jnp.linalg.inv)(matrices), 0, -1))


def _linalg_factor(values: jax.Array) -> jax.Array:
  def inverse_factor(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.inv(jnp.linalg.cholesky(matrix))

  matrices = jnp.moveaxis(packed.unpack(values), -1, 0)
  return packed.pack(jnp.moveaxis(jax.vmap(inverse_factor)(matrices), (1, 2), (1, 0)))


_PACKED: dict[tuple[Method, bool], Callable[[Any], Any]] = {
  ("sweep", False): packed.inverse,
  ("sweep", True): packed.inverse_factor,
  ("linalg", False): _linalg_inverse,
  ("linalg", True): _linalg_factor,
}
"""By method, and whether the inverse's factor is wanted."""


def _invert_matrices(
  values: list[jax.Array], previous: list[jax.Array], method: Method
) -> list[Inverses]:
  order = max(v.shape[-1] for v in values)
  batches = [pad(v, order) for v in values]
  if len(batches) > 1:
    batches = [batch.reshape(-1, order, order) for batch in batches]
  batch = jnp.concatenate(batches)
  if method == "linalg":
    new = jnp.linalg.inv(placement.whole(batch))
  else:
    new = spd_inverse(batch)
  parts = jnp.split(new, _ends([len(batch) for batch in batches]))
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
