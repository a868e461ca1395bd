"""Following parameters through the equations of a jaxpr."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from mbf_optax._partition import arithmetic, control, layouts, products
from mbf_optax._partition.uses import Record, Recorder, Use
from mbf_optax._partition.values import Value, captured, shape_of
from mbf_optax._partition.views import Span, View

_RULES = layouts.RULES | arithmetic.RULES | products.RULES | control.RULES
_REVERSE = "transpose("  # in the name stack of equations that autodiff has reversed


@dataclasses.dataclass
class Walk:
  """The state of a walk.

  Attributes:
    record: what was seen so far.
    muted: whether the equation says nothing: no gradient comes back through it, or
      autodiff has reversed it, as in a loss that holds gradients, and its products
      contract what the outputs were.
    wanted: the outputs of the equation that gradients come back through.
    counter: of equations and uses.
  """

  record: Recorder = dataclasses.field(default_factory=Recorder)
  muted: bool = False
  wanted: Sequence[bool] = ()
  counter: Any = dataclasses.field(default_factory=itertools.count)

  def follow(
    self, jaxpr: Any, inputs: Sequence[Value], wanted: Sequence[bool] | None = None
  ) -> list[Value]:
    """The outputs of a jaxpr, with all uses in it recorded.

    Args:
      jaxpr: closed or not.
      inputs: its inputs.
      wanted: the outputs that gradients come back through, all if ``None``.
    """
    if isinstance(jaxpr, core.ClosedJaxpr):
      jaxpr = jaxpr.jaxpr
    live = _differentiated(jaxpr, wanted)
    known: dict[Any, Value] = {var: captured(var.aval) for var in jaxpr.constvars}
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def look_up(atom: Any) -> Value:
      return captured(atom.aval) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
      values = [look_up(atom) for atom in equation.invars]
      self.wanted = [var in live for var in equation.outvars]
      known.update(zip(equation.outvars, self._outputs(equation, values), strict=True))
    return [look_up(atom) for atom in jaxpr.outvars]

  def _outputs(self, equation: core.JaxprEqn, values: list[Value]) -> list[Value]:
    outer = self.muted
    is_reversed = _REVERSE in str(equation.source_info.name_stack)
    self.muted = outer or is_reversed or not any(self.wanted)
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
      self.muted = outer
    return [
      value._replace(scalar=value.scalar or math.prod(shape_of(var)) == 1)
      for var, value in zip(equation.outvars, outputs, strict=True)
    ]

  def use(self, view: View, use: Use, equation: core.JaxprEqn, with_data: bool) -> int:
    """Records a use; returns its number."""
    number = next(self.counter)
    if not self.muted:
      record = Record(view.path, use, describe(equation), with_data)
      self.record.uses[number] = record
    return number

  def is_bias(self, view: View, outputs: Sequence[View]) -> bool:
    """Whether a parameter is a bias of one of the products; records it if so."""
    if self.muted:
      return False
    return self.record.add_bias(view, outputs, next(self.counter))

  def is_weight(self, view: View) -> None:
    """Records that what data were added to, or multiplied with, is a weight."""
    if not self.muted:
      self.record.withdrawn.update(view.events)

  def stack_alike(self, span: Span, axis: int, origins: Iterable[View]) -> None:
    """Records which weights stack layers since what they made meets stacked ones."""
    if not self.muted:
      self.record.stack_alike(span, axis, origins)

  def lose(self, view: View, equation: core.JaxprEqn) -> None:
    """Records that a parameter is not followed through an equation."""
    if not self.muted:
      self.record.lost.setdefault(view.path, describe(equation))


_FAULTS = (KeyError, IndexError, AttributeError, TypeError, NotImplementedError)


def describe(equation: core.JaxprEqn) -> str:
  """``"dot_general of (2, 4) and (4, 3)"``."""
  shapes = [str(shape_of(atom)) for atom in equation.invars]
  return f"{equation.primitive.name} of {' and '.join(shapes)}"


def _differentiated(jaxpr: core.Jaxpr, wanted: Sequence[bool] | None) -> set[Any]:
  """The variables that gradients of the wanted outputs come back to."""
  outputs = jaxpr.outvars
  chosen = [True] * len(outputs) if wanted is None else wanted
  live = _variables(a for a, keep in zip(outputs, chosen, strict=True) if keep)
  for equation in reversed(jaxpr.eqns):
    is_stopped = equation.primitive.name == "stop_gradient"
    if not is_stopped and any(var in live for var in equation.outvars):
      live |= _variables(equation.invars)
  return live


def _variables(atoms: Iterable[Any]) -> set[Any]:
  return {atom for atom in atoms if isinstance(atom, core.Var)}
