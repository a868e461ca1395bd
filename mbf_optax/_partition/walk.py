"""Following parameters through the equations of a jaxpr."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from mbf_optax._partition import arithmetic, control, layouts, products
from mbf_optax._partition.uses import Record, Recorder, Use
from mbf_optax._partition.values import Value, captured, shape_of
from mbf_optax._partition.views import View

_RULES = layouts.RULES | arithmetic.RULES | products.RULES | control.RULES
_REVERSE = "transpose("  # in the name stack of equations that autodiff has reversed


@dataclasses.dataclass
class Walk:
  """The state of a walk.

  Attributes:
    record: what was seen so far.
    reverse: whether the equation belongs to a reversed computation, as in a loss that
      holds gradients; its products contract what the outputs were, and say nothing.
    counter: of equations and uses.
  """

  record: Recorder = dataclasses.field(default_factory=Recorder)
  reverse: bool = False
  counter: Any = dataclasses.field(default_factory=itertools.count)

  def closed(self, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of a jaxpr, closed or not."""
    if isinstance(jaxpr, core.ClosedJaxpr):
      constants = [captured(var.aval) for var in jaxpr.jaxpr.constvars]
      return self.follow(jaxpr.jaxpr, constants, inputs)
    return self.follow(jaxpr, [], inputs)

  def follow(
    self, jaxpr: core.Jaxpr, constants: Sequence[Value], inputs: Sequence[Value]
  ) -> list[Value]:
    """The outputs of a jaxpr, with all uses in it recorded."""
    known: dict[Any, Value] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def look_up(atom: Any) -> Value:
      return captured(atom.aval) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
      values = [look_up(atom) for atom in equation.invars]
      known.update(zip(equation.outvars, self._outputs(equation, values), strict=True))
    return [look_up(atom) for atom in jaxpr.outvars]

  def _outputs(self, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    outer = self.reverse
    self.reverse = outer or _REVERSE in str(equation.source_info.name_stack)
    name = equation.primitive.name
    rule = _RULES.get(name, control.nested)
    try:
      outputs = rule(self, equation, values)
    except _FAULTS as error:
      paths = sorted({view.path for value in values for view in value.views})
      raise ValueError(
        f"mbf_optax.traced_partition: the equation {describe(equation)} could not be"
        f" followed, with the parameters {paths} in it; please report it, and read"
        " the model with overrides of another partition meanwhile."
      ) from error
    finally:
      self.reverse = outer
    return [
      value._replace(scalar=value.scalar or math.prod(shape_of(var)) == 1)
      for var, value in zip(equation.outvars, outputs, strict=True)
    ]

  def use(self, view: View, use: Use, equation: core.JaxprEqn, with_data: bool) -> int:
    """Records a use; returns its number."""
    number = next(self.counter)
    if not self.reverse:
      record = Record(view.path, use, describe(equation), with_data)
      self.record.uses[number] = record
    return number

  def is_bias(self, view: View, outputs: Sequence[View]) -> bool:
    """Whether a parameter is a bias of one of the products; records it if so."""
    if self.reverse:
      return False
    return self.record.add_bias(view, outputs, next(self.counter))

  def lose(self, view: View, equation: core.JaxprEqn) -> None:
    """Records that a parameter is not followed through an equation."""
    if not self.reverse:
      self.record.lost.setdefault(view.path, describe(equation))


_FAULTS = (KeyError, IndexError, AttributeError, TypeError, NotImplementedError)


def describe(equation: core.JaxprEqn) -> str:
  """``"dot_general of (2, 4) and (4, 3)"``."""
  shapes = [str(shape_of(atom)) for atom in equation.invars]
  return f"{equation.primitive.name} of {' and '.join(shapes)}"
