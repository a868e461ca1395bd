"""Products and convolutions with parameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mbf_optax._partition.uses import Use, ensemble, in_convolution, in_product
from mbf_optax._partition.values import Rule, Source, Value, shape_of
from mbf_optax._partition.views import Span, View, fresh


class _Numbers(NamedTuple):
  """What the axes of a product's two operands are.

  Attributes:
    contracted: axes that are summed over.
    batch: axes that are in both operands and in the output.
    groups: axes of the weight for the groups of the other operand's rows, as experts.
  """

  contracted: tuple[Sequence[int], Sequence[int]]
  batch: tuple[Sequence[int], Sequence[int]]
  groups: tuple[Sequence[int], Sequence[int]]

  def stacked(self, side: int) -> tuple[int, ...]:
    """Axes of an operand that stack independent layers."""
    return (*self.batch[side], *self.groups[side])

  def use(self, view: View, side: int) -> Use:
    return in_product(view, self.contracted[side], self.stacked(side))


def _dot_general(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  contracted, batch = equation.params["dimension_numbers"]
  return _product(walk, equation, values, _Numbers(contracted, batch, ((), ())))


def _ragged_dot_general(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  ragged = equation.params["ragged_dot_dimension_numbers"]
  contracted, batch = ragged.dot_dimension_numbers
  groups = ((), ragged.rhs_group_dimensions)
  return _product(walk, equation, values[:2], _Numbers(contracted, batch, groups))


def _product(
  walk: Any, equation: Any, values: list[Value], numbers: _Numbers
) -> list[Value]:
  made: list[View] = []
  step = next(walk.counter)
  for side in (0, 1):
    value, other = values[side], values[1 - side]
    for view in value.views:
      use = numbers.use(view, side)
      if _is_weight(walk, equation, view, use, value, other):
        made.append(_output(equation, view, side, numbers, step))
        for ours, theirs in zip(*_ordered(numbers.batch, side), strict=True):
          walk.stack_alike(view.axes[ours], theirs, other.origins)
  alone = all(value.views and not value.is_data for value in values)
  source = Source.PARAMETERS if alone else Source.DATA
  return [Value(source, outputs=tuple(made), origins=_origins(made))]


def _ordered(
  pair: tuple[Sequence[int], Sequence[int]], side: int
) -> tuple[Sequence[int], Sequence[int]]:
  """A pair with that of the given operand first."""
  return pair[side], pair[1 - side]


def _origins(made: Sequence[View]) -> tuple[View, ...]:
  """Views that may show layers of an ensemble: of several axes of outputs."""
  return tuple(v for v in made if sum(len(span.real) for span in v.axes) > 1)


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
  walk.is_weight(view)
  pure = bool(other.views) and not value.is_data and not other.is_data
  walk.use(view, use, equation, not pure)
  return use.kind != "elementwise"


def _output(equation: Any, view: View, side: int, numbers: _Numbers, step: int) -> View:
  """The weight's view of what a product with it makes: batch, left and right axes."""
  axes = [view.axes[axis] for axis in numbers.batch[side]]
  for operand in (0, 1):
    used = {*numbers.contracted[operand], *numbers.stacked(operand)}
    for axis, size in enumerate(shape_of(equation.invars[operand])):
      if axis not in used:
        axes.append(view.axes[axis] if operand == side else fresh(size))
  return View(view.path, tuple(axes), view.stacked, step)


def _convolution(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  numbers = equation.params["dimension_numbers"]
  step, made = next(walk.counter), []
  for view in values[1].views:
    use = in_convolution(view, shape_of(equation.invars[1]), equation.params)
    walk.is_weight(view)
    walk.use(view, use, equation, True)
    axes = [fresh(size) for size in shape_of(equation.outvars[0])]
    axes[numbers.out_spec[1]] = view.axes[numbers.rhs_spec[0]]
    made.append(View(view.path, tuple(axes), view.stacked, step))
    outputs, features = view.axes[numbers.rhs_spec[0]], numbers.lhs_spec[1]
    stack = ensemble(outputs.real, equation.params["feature_group_count"])
    if stack:
      first = Span(outputs.real[:1])
      walk.stack_alike(first, features, values[0].origins)
  for view in values[0].views:
    walk.lose(view, equation)
  return [Value(Source.DATA, outputs=tuple(made), origins=_origins(made))]


RULES: dict[str, Rule] = {
  "dot_general": _dot_general,
  "ragged_dot_general": _ragged_dot_general,
  "conv_general_dilated": _convolution,
}
