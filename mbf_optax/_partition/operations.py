"""What each equation makes of the parameters in it: layout, arithmetic, products."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mbf_optax._partition import views
from mbf_optax._partition.uses import Use, in_convolution, in_product
from mbf_optax._partition.values import Source, Value, computed, source_of
from mbf_optax._partition.views import UNKNOWN, View, fresh

Rule = Callable[[Any, Any, list[Value]], list[Value]]
"""From a walk, an equation and its operands to its outputs."""


def _shape(atom: Any) -> views.Shape:
  return tuple(atom.aval.shape)


def _shapes(equation: Any) -> tuple[views.Shape, views.Shape]:
  return _shape(equation.invars[0]), _shape(equation.outvars[0])


# Layout.


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
  old, new = _shapes(equation)
  first = equation.params["dimensions"]
  if first is not None:
    view = views.transpose(view, first)
    old = tuple(old[axis] for axis in first)
  return None if 0 in old else views.reshape(view, old, new)


def _broadcast(equation: Any, view: View) -> View | None:
  dimensions = equation.params["broadcast_dimensions"]
  return views.broadcast(view, *_shapes(equation), dimensions)


def _slice(equation: Any, view: View) -> View | None:
  shape, sizes = _shapes(equation)
  starts = list(equation.params["start_indices"])
  for axis, stride in enumerate(equation.params["strides"] or ()):
    if stride != 1:
      starts[axis] = UNKNOWN
  return views.slices(view, shape, starts, sizes)


def _dynamic_slice(equation: Any, view: View) -> View | None:
  shape, sizes = _shapes(equation)
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
    start += _shape(atom)[axis]
  if source is Source.DATA:
    for view in _views(values):
      walk.use(view, Use("elementwise"), equation, True)
    return [Value(source, (), _outputs(parts))]
  return [Value(source, _views(parts), _outputs(parts))]


def _views(values: Sequence[Value]) -> tuple[View, ...]:
  return tuple(view for value in values for view in value.views)


def _outputs(values: Sequence[Value]) -> tuple[View, ...]:
  return tuple(dict.fromkeys(view for value in values for view in value.outputs))


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
    computed(Source.DATA if table.views else source_of(values), _shapes(equation)[1])
  ]


def _taken(equation: Any, view: View) -> View | None:
  """What a gather takes, if it is whole arrays: one, or of rank 2 for each index."""
  numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
  shape, new = _shapes(equation)
  cut = views.slices(view, shape, [UNKNOWN] * len(shape), sizes)
  if cut is None:
    return None
  is_one = all(size == 1 for size in _shape(equation.invars[1])[:-1])
  matrix = sum(size > 1 and bool(cut.axes[i].real) for i, size in enumerate(sizes)) > 1
  if not is_one and not matrix:
    return None
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  cut = views.squeeze(cut, gone)
  axes = [fresh(size) for size in new]
  for axis, span in zip(numbers.offset_dims, cut.axes, strict=True):
    axes[axis] = span
  return cut._replace(axes=tuple(axes))


# Arithmetic.

_SUMS = {"add", "sub", "add_any"}
_MASKED = {*_SUMS, "mul", "div", "select_n"}  # after which a weight may still be one
_LINEAR = {"neg", "real", "reduce_precision", "mul", "div"}
_ELEMENTWISE = {
  *_MASKED,
  *_LINEAR,
  *("abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt"),
  *("ceil", "clamp", "conj", "copysign", "cos", "cosh", "digamma", "erf", "erf_inv"),
  *("erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow"),
  *("is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "ne"),
  *("nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh"),
  *("sqrt", "square", "tan", "tanh", "xor", "eq"),
}


def _elementwise(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """Arithmetic of one element with those at its place."""
  name, source = equation.primitive.name, source_of(values)
  values = _broadcast_all(equation, values)
  if not any(value.views for value in values):
    return [
      Value(
        source,
        outputs=_summed(name, values),
        scalar=all(value.scalar for value in values),
        indicator=name == "eq" and source is Source.DATA,
      )
    ]
  kept: list[View] = []
  for i, value in enumerate(values):
    others = values[:i] + values[i + 1 :]
    for view in value.views:
      kept += _beside(walk, equation, view, others)
  outputs = _outputs(values) if name in _SUMS else ()
  return [Value(source, tuple(kept), outputs)]


def _broadcast_all(equation: Any, values: Sequence[Value]) -> list[Value]:
  """Operands whose axes of one element are repeated over those of the others."""
  shape = _shape(equation.outvars[0])
  spread = []
  for atom, value in zip(equation.invars, values, strict=True):
    old = _shape(atom)
    if old != shape and len(old) == len(shape):
      change = functools.partial(
        views.broadcast, old=old, new=shape, dimensions=range(len(old))
      )
      value = value.changed(change)
    spread.append(value)
  return spread


def _summed(name: str, values: Sequence[Value]) -> tuple[View, ...]:
  """The products of which an expression without parameters is the sum."""
  having = [value for value in values if value.outputs]
  scaled = all(
    value.scalar or not value.source for value in values if value not in having
  )
  if name in _SUMS or (name in _LINEAR and scaled and len(having) == 1):
    return _outputs(values)
  return ()


def _beside(
  walk: Any, equation: Any, view: View, others: Sequence[Value]
) -> tuple[View, ...]:
  """What is followed of a parameter that meets others at its place."""
  name = equation.primitive.name
  if name in _SUMS and walk.is_bias(view, _outputs(others)):
    return ()
  meets = [value for value in others if value.is_data and not value.scalar]
  if not meets:
    return (view,)
  number = walk.use(view, Use("elementwise"), equation, True)
  if name in _MASKED and view.one_to_one:
    return (view._replace(events=(*view.events, number)),)
  return ()


# Products.


def _dot_general(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  return _product(walk, equation, values, equation.params["dimension_numbers"], ())


def _ragged_dot_general(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  numbers = equation.params["ragged_dot_dimension_numbers"]
  groups = tuple(numbers.rhs_group_dimensions)
  return _product(walk, equation, values[:2], numbers.dot_dimension_numbers, groups)


def _product(
  walk: Any,
  equation: Any,
  values: list[Value],
  numbers: Any,
  groups: tuple[int, ...],
) -> list[Value]:
  """A product; ``groups`` are axes of the second operand that stack layers as well."""
  contracted, batch = numbers
  made: list[View] = []
  step = next(walk.counter)
  for side in (0, 1):
    stacked = (*batch[side], *(groups if side else ()))
    other = values[1 - side]
    for view in values[side].views:
      use = in_product(view, contracted[side], stacked)
      if _is_weight(walk, equation, view, use, values[side], other):
        made.append(_output(equation, view, side, contracted, batch, groups, step))
  alone = all(value.views and not value.is_data for value in values)
  source = Source.PARAMETERS if alone else Source.DATA
  return [Value(source, outputs=tuple(made))]


def _is_weight(
  walk: Any, equation: Any, view: View, use: Use, value: Value, other: Value
) -> bool:
  """Whether an operand is a weight here; records its use if so.

  A parameter with data added to it is one only where the other operand is none:
  positions added to an input are no weight of the layer that follows.
  """
  if view.events and other.views:
    return False
  if other.indicator:
    walk.use(view, Use("elementwise"), equation, True)
    return False
  walk.record.withdrawn.update(view.events)
  pure = bool(other.views) and not value.is_data and not other.is_data
  walk.use(view, use, equation, not pure)
  return use.kind != "elementwise"


def _output(
  equation: Any,
  view: View,
  side: int,
  contracted: Any,
  batch: Any,
  groups: tuple[int, ...],
  step: int,
) -> View:
  """The weight's view of what a product with it makes: batch, left and right axes."""
  axes = [view.axes[axis] for axis in batch[side]]
  for operand in (0, 1):
    used = {*contracted[operand], *batch[operand], *(groups if operand else ())}
    for axis, size in enumerate(_shape(equation.invars[operand])):
      if axis not in used:
        axes.append(view.axes[axis] if operand == side else fresh(size))
  return View(view.path, tuple(axes), view.stacked, step)


def _convolution(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  numbers = equation.params["dimension_numbers"]
  step, made = next(walk.counter), []
  for view in values[1].views:
    use = in_convolution(view, _shape(equation.invars[1]), equation.params)
    walk.record.withdrawn.update(view.events)
    walk.use(view, use, equation, True)
    axes = [fresh(size) for size in _shape(equation.outvars[0])]
    axes[numbers.out_spec[1]] = view.axes[numbers.rhs_spec[0]]
    made.append(View(view.path, tuple(axes), view.stacked, step))
  for view in values[0].views:
    walk.lose(view, equation)
  return [Value(Source.DATA, outputs=tuple(made))]


def _random(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """Noise is no data: a weight with noise added is still one."""
  del walk, values
  return [Value() for _ in equation.outvars]


def _stopped(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """No gradient comes back: what is computed from it does not use the parameter."""
  del walk, equation
  return [values[0]._replace(views=())]


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
  **dict.fromkeys(sorted(_ELEMENTWISE), _elementwise),
  "dot_general": _dot_general,
  "ragged_dot_general": _ragged_dot_general,
  "conv_general_dilated": _convolution,
  "stop_gradient": _stopped,
  **dict.fromkeys(
    (
      *("random_bits", "random_wrap", "random_unwrap", "random_seed"),
      *("random_split", "random_fold_in", "random_clone", "threefry2x32"),
    ),
    _random,
  ),
}
