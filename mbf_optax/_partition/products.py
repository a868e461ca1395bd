"""Products and convolutions with parameters."""

from typing import Any

from mbf_optax._partition.uses import Use, in_convolution, in_product
from mbf_optax._partition.values import Rule, Source, Value, shape_of
from mbf_optax._partition.views import View, fresh


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
    for axis, size in enumerate(shape_of(equation.invars[operand])):
      if axis not in used:
        axes.append(view.axes[axis] if operand == side else fresh(size))
  return View(view.path, tuple(axes), view.stacked, step)


def _convolution(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  numbers = equation.params["dimension_numbers"]
  step, made = next(walk.counter), []
  for view in values[1].views:
    use = in_convolution(view, shape_of(equation.invars[1]), equation.params)
    walk.record.withdrawn.update(view.events)
    walk.use(view, use, equation, True)
    axes = [fresh(size) for size in shape_of(equation.outvars[0])]
    axes[numbers.out_spec[1]] = view.axes[numbers.rhs_spec[0]]
    made.append(View(view.path, tuple(axes), view.stacked, step))
  for view in values[0].views:
    walk.lose(view, equation)
  return [Value(Source.DATA, outputs=tuple(made))]


RULES: dict[str, Rule] = {
  "dot_general": _dot_general,
  "ragged_dot_general": _ragged_dot_general,
  "conv_general_dilated": _convolution,
}
