"""Where state lives on a mesh of devices: with the parameters that it belongs to.

Blocks are never cut: a layer's statistics are divided along the axes that count its
blocks. Those axes keep the mesh axes of the parameter; a mesh axis that divides the
parameter inside its blocks moves to an axis that counts them. The one matrix of a
``"shared"`` layer is divided by rows instead. What does not divide evenly stays whole.

Shardings are known from concrete arrays and, while tracing, from the types of explicit
sharding. Under automatic sharding a trace knows nothing and XLA follows the state that
it is given. Without a mesh nothing here does anything.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mbf_optax import tree
from mbf_optax.elementwise import ElementwiseState
from mbf_optax.full import BlockState
from mbf_optax.layers import Reading
from mbf_optax.low_rank import LowRankState

Names = tuple[str, ...]
"""Mesh axes that divide one axis of an array."""


def sharding_of(array: Any) -> NamedSharding | None:
  """How an array is laid out over a mesh, or ``None`` if it is not or if not known."""
  if isinstance(array, jax.core.Tracer):
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
  sharding = getattr(array, "sharding", None)
  return sharding if isinstance(sharding, NamedSharding) else None


def init(build: Callable[[Any], Any], readings: Sequence[Reading], params: Any) -> Any:
  """``build(params)``, an ``MbfState``, laid out beside the parameters.

  No device holds more than its own part of the state, not for a moment.
  """
  leaves = tree.flatten(params)
  known = [s for s in map(sharding_of, leaves.values()) if s is not None]
  if not known:
    return build(params)
  whole = NamedSharding(known[0].mesh, PartitionSpec())
  state = jax.eval_shape(build, params)
  shardings = jax.tree.map(lambda _: whole, state)._replace(
    momentum=jax.tree.map(lambda p: sharding_of(p) or whole, params),
    curvature={
      r.path: _layer(r, state.curvature[r.path], sharding_of(leaves[r.path]) or whole)
      for r in readings
    },
  )
  if AxisType.Explicit in whole.mesh.axis_types:
    build = jax.sharding.auto_axes(build, out_sharding=shardings)
  return jax.jit(build, out_shardings=shardings)(params)


def update(step: Callable, updates: Any, state: Any, *others: Any) -> Any:
  """``step(updates, state, *others)``, its results laid out like updates and state.

  Within an explicit mesh the step itself runs under automatic sharding.
  """
  known = [s for s in map(sharding_of, jax.tree.leaves(updates)) if s is not None]
  if not known or AxisType.Explicit not in known[0].mesh.axis_types:
    return step(updates, state, *others)
  shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
  step = jax.sharding.auto_axes(step, out_sharding=shardings)
  return step(updates, state, *others)


def scalar(value: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike) -> jax.Array:
  """A hyperparameter as an array that can enter a step, wherever it was made."""
  if isinstance(value, jax.Array) and _within_step() and sharding_of(value):
    mesh = jax.sharding.get_abstract_mesh()
    value = jax.sharding.reshard(value, NamedSharding(mesh, PartitionSpec()))
  return jnp.asarray(value, dtype)


def whole(matrices: jax.Array) -> jax.Array:
  """Has every device hold whole matrices ``(..., n, m)``, as far as a mesh is known.

  A product whose left factor is divided by rows then moves the right one, never the
  left one, however large either is.
  """
  if not _within_step():
    return matrices
  free = [PartitionSpec.UNCONSTRAINED] * (matrices.ndim - 2)
  return jax.lax.with_sharding_constraint(matrices, PartitionSpec(*free, None, None))


def _within_step() -> bool:
  """Whether a mesh is known whose axes XLA divides arrays over."""
  return AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


def may_be_divided() -> bool:
  """Whether a mesh of several devices is known, so that arrays may be divided."""
  return _within_step() and jax.sharding.get_abstract_mesh().size > 1


def _layer(reading: Reading, state: Any, sharding: NamedSharding) -> Any:
  """Shardings of a layer's state, given that of its weight array."""
  mesh, axes = sharding.mesh, _names(sharding, len(reading.shape))

  def placed(*axes: Names | None) -> Any:
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in axes)))

  if isinstance(state, ElementwiseState):
    return ElementwiseState(placed(None, *axes))
  if reading.layer.estimator == "shared":
    stack, inner = axes[: len(reading.stack_shape)], axes[len(reading.stack_shape) :]
    rows = _fitting(sum(inner, ()), state.statistics.shape[-1], mesh.shape)
    return BlockState(placed(*stack, rows), placed(*stack, rows))
  batch = _block_axes(reading, axes, mesh.shape)
  leading, trailing = placed(*batch), placed(None, *batch)
  if isinstance(state, LowRankState):
    return LowRankState(
      history=leading,
      weights=placed(),
      slot=placed(),
      gram=trailing,
      inverse=trailing,
      damping=leading,
    )
  is_packed = state.statistics.ndim == len(batch) + 1
  blocks = trailing if is_packed else leading
  return BlockState(blocks, blocks)


def _names(sharding: NamedSharding, ndim: int) -> list[Names]:
  """Mesh axes of every axis of an array."""
  entries = [(e,) if isinstance(e, str) else tuple(e or ()) for e in sharding.spec]
  return entries + [()] * (ndim - len(entries))


def _block_axes(
  reading: Reading, axes: list[Names], sizes: dict[str, int]
) -> list[Names]:
  """Mesh axes of the axes that count blocks, those of the others moved to them."""
  inside = reading.layer.block_axes
  batch = [names for axis, names in enumerate(axes) if axis not in inside]
  for name in sum((axes[axis] for axis in inside), ()):
    for axis, count in _largest_first(reading.batch_shape):
      longer = (*batch[axis], name)
      if _fitting(longer, count, sizes) == longer:
        batch[axis] = longer
        break
  return batch


def _largest_first(shape: Sequence[int]) -> Iterable[tuple[int, int]]:
  return sorted(enumerate(shape), key=lambda entry: -entry[1])


def _fitting(names: Names, count: int, sizes: dict[str, int]) -> Names:
  """Those of the mesh axes that together divide ``count`` evenly."""
  taken: Names = ()
  for name in names:
    if count % math.prod(sizes[n] for n in (*taken, name)) == 0:
      taken = (*taken, name)
  return taken
