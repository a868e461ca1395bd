"""Arithmetic with parameters: scaled, summed, masked, or met element by element."""

import functools
from collections.abc import Sequence
from typing import Any

from mbf_optax._partition import views
from mbf_optax._partition.uses import Use
from mbf_optax._partition.values import (
  Rule,
  Source,
  Value,
  origins_of,
  outputs_of,
  shape_of,
  source_of,
)
from mbf_optax._partition.views import View

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
        origins=origins_of(values),
        scalar=all(value.scalar for value in values),
        indicator=name == "eq" and source is Source.DATA,
      )
    ]
  kept: list[View] = []
  for i, value in enumerate(values):
    others = values[:i] + values[i + 1 :]
    for view in value.views:
      kept += _beside(walk, equation, view, others)
  outputs = outputs_of(values) if name in _SUMS else ()
  return [Value(source, tuple(kept), outputs, origins_of(values))]


def _broadcast_all(equation: Any, values: Sequence[Value]) -> list[Value]:
  """Operands whose axes of one element are repeated over those of the others."""
  shape = shape_of(equation.outvars[0])
  spread = []
  for atom, value in zip(equation.invars, values, strict=True):
    old = shape_of(atom)
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
    return outputs_of(values)
  return ()


def _beside(
  walk: Any, equation: Any, view: View, others: Sequence[Value]
) -> tuple[View, ...]:
  """What is followed of a parameter that meets others at its place."""
  name = equation.primitive.name
  if name in _SUMS and walk.is_bias(view, outputs_of(others)):
    return ()
  meets = [value for value in others if value.is_data and not value.scalar]
  if not meets:
    return (view,)
  number = walk.use(view, Use("elementwise"), equation, True)
  if name in _MASKED and view.one_to_one:
    return (view._replace(events=(*view.events, number)),)
  return ()


def _random(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """Noise is no data: a weight with noise added is still one."""
  del walk, values
  return [Value() for _ in equation.outvars]


def _stopped(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """No gradient comes back: what is computed from it does not use the parameter."""
  del walk, equation
  return [values[0]._replace(views=())]


RULES: dict[str, Rule] = {
  **dict.fromkeys(sorted(_ELEMENTWISE), _elementwise),
  "stop_gradient": _stopped,
  **dict.fromkeys(
    (
      *("random_bits", "random_wrap", "random_unwrap", "random_seed"),
      *("random_split", "random_fold_in", "random_clone", "threefry2x32"),
    ),
    _random,
  ),
}
