"""Equations that change the layout of a parameter: moved, sliced, joined, taken."""

import functools
from collections.abc import Callable
from typing import Any

from mbf_optax._partition import views
from mbf_optax._partition.uses import Use
from mbf_optax._partition.values import (
  Rule,
  Source,
  Value,
  computed,
  origins_of,
  outputs_of,
  shape_of,
  shapes_of,
  source_of,
  views_of,
)
from mbf_optax._partition.views import UNKNOWN, View, fresh


def _layout(change: Callable[[Any, View], View | None]) -> Rule:
  """A rule for equations that move the elements of their first operand."""

  def rule(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
    value = values[0].changed(functools.partial(change, equation))
    for view in values[0].views:
      if view.path not in {kept.path for kept in value.views}:
        walk.lose(view, equation)
    return [value]

  return rule


def _reshape(equation: Any, view: View) -> View | None:
  old, new = shapes_of(equation)
  first = equation.params["dimensions"]
  if first is not None:
    view = views.transpose(view, first)
    old = tuple(old[axis] for axis in first)
  return None if 0 in old else views.reshape(view, old, new)


def _broadcast(equation: Any, view: View) -> View | None:
  dimensions = equation.params["broadcast_dimensions"]
  return views.broadcast(view, *shapes_of(equation), dimensions)


def _slice(equation: Any, view: View) -> View | None:
  shape, sizes = shapes_of(equation)
  starts = list(equation.params["start_indices"])
  for axis, stride in enumerate(equation.params["strides"] or ()):
    if stride != 1:
      starts[axis] = UNKNOWN
  return views.slices(view, shape, starts, sizes)


def _dynamic_slice(equation: Any, view: View) -> View | None:
  shape, sizes = shapes_of(equation)
  return views.slices(view, shape, [UNKNOWN] * len(shape), sizes)


def _pad(equation: Any, view: View) -> View | None:
  for axis, (low, high, interior) in enumerate(equation.params["padding_config"]):
    if low < 0 or high < 0 or interior:
      return None
    view = views.shift(view, axis, low)
  return view


def _same(equation: Any, view: View) -> View:
  del equation
  return view


def _each(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """Equations that hand on all their operands, such as barriers."""
  del walk
  return values if len(values) == len(equation.outvars) else values[:1]


def _split(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  del walk
  axis, parts, start = equation.params["axis"], [], 0
  for size in equation.params["sizes"]:
    take = functools.partial(views.cut, axis=axis, start=start, size=size)
    parts.append(values[0].changed(take))
    start += size
  return parts


def _concatenate(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """All operands' views, each as a part of the whole."""
  axis, start = equation.params["dimension"], 0
  source = source_of(values)
  parts: list[Value] = []
  for atom, value in zip(equation.invars, values, strict=True):
    parts.append(value.changed(functools.partial(views.shift, axis=axis, offset=start)))
    start += shape_of(atom)[axis]
  if source is Source.DATA:
    for view in views_of(values):
      walk.use(view, Use("elementwise"), equation, True)
    return [Value(source, (), outputs_of(parts), origins_of(parts))]
  return [Value(source, views_of(parts), outputs_of(parts))]


def _gather(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """An embedding, or one of several stacked arrays."""
  table = values[0]
  followed = []
  for view in table.views:
    taken = _taken(equation, view)
    if taken is None:
      walk.use(view, Use("elementwise"), equation, True)
    else:
      followed.append(taken)
  if followed:
    return [Value(table.source, tuple(followed))]
  return [
    computed(Source.DATA if table.views else source_of(values), shapes_of(equation)[1])
  ]


def _taken(equation: Any, view: View) -> View | None:
  """What a gather takes, if it is whole arrays: one, or of rank 2 for each index."""
  numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
  shape, new = shapes_of(equation)
  cut = views.slices(view, shape, [UNKNOWN] * len(shape), sizes)
  if cut is None:
    return None
  is_one = all(size == 1 for size in shape_of(equation.invars[1])[:-1])
  matrix = sum(size > 1 and bool(cut.axes[i].real) for i, size in enumerate(sizes)) > 1
  if not is_one and not matrix:
    return None
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  cut = views.squeeze(cut, gone)
  axes = [fresh(size) for size in new]
  for axis, span in zip(numbers.offset_dims, cut.axes, strict=True):
    axes[axis] = span
  return cut._replace(axes=tuple(axes))


RULES: dict[str, Rule] = {
  "transpose": _layout(lambda e, view: views.transpose(view, e.params["permutation"])),
  "reshape": _layout(_reshape),
  "squeeze": _layout(lambda e, view: views.squeeze(view, e.params["dimensions"])),
  "broadcast_in_dim": _layout(_broadcast),
  "slice": _layout(_slice),
  "dynamic_slice": _layout(_dynamic_slice),
  "pad": _layout(_pad),
  **dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "rev", "name"),
    _layout(_same),
  ),
  **dict.fromkeys(
    ("optimization_barrier", "sharding_constraint", "device_put", "pvary", "mesh_cast"),
    _each,
  ),
  "split": _split,
  "concatenate": _concatenate,
  "gather": _gather,
}
