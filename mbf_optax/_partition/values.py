"""What is known of a value of the traced computation."""

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from mbf_optax._partition.views import Change, Shape, View


class Source(enum.IntEnum):
  """What a value is computed from; the larger one decides."""

  CONSTANT = 0
  PARAMETERS = 1
  DATA = 2


class Value(NamedTuple):
  """What is known of a value.

  Attributes:
    source: what it is computed from. Constants may be data that the loss closes over.
    views: the parameters that it is, up to layout and scale.
    outputs: the parameters whose products were summed to make it.
    origins: the parameters whose products it is computed from, element by element.
    scalar: whether all its elements are one number.
    indicator: whether it says where two integers are equal, as a one-hot code does.
  """

  source: Source = Source.CONSTANT
  views: tuple[View, ...] = ()
  outputs: tuple[View, ...] = ()
  origins: tuple[View, ...] = ()
  scalar: bool = False
  indicator: bool = False

  @property
  def is_data(self) -> bool:
    return self.source is Source.DATA

  @property
  def is_mixed(self) -> bool:
    """Whether data were added to a parameter, or multiplied with it."""
    return any(view.events for view in self.views)

  def changed(self, change: Change) -> "Value":
    """The value in another layout."""
    views, outputs, origins = (
      tuple(new for view in old if (new := change(view)) is not None)
      for old in (self.views, self.outputs, self.origins)
    )
    return self._replace(views=views, outputs=outputs, origins=origins)


def captured(aval: Any) -> Value:
  """A literal, or an array that the loss closes over: integers are labels or tokens."""
  scalar = math.prod(aval.shape) == 1
  is_data = not scalar and jnp.issubdtype(aval.dtype, jnp.integer)
  return Value(Source.DATA if is_data else Source.CONSTANT, scalar=scalar)


def computed(source: Source, shape: Shape) -> Value:
  """A value that is followed no further."""
  return Value(source, scalar=math.prod(shape) == 1)


def source_of(values: Iterable[Value]) -> Source:
  """That of something computed from all of them."""
  return max((value.source for value in values), default=Source.CONSTANT)


Rule = Callable[[Any, Any, list[Value]], list[Value]]
"""From a walk, an equation and its operands to its outputs."""


def shape_of(atom: Any) -> Shape:
  """Shape of a variable or a literal of a jaxpr."""
  return tuple(atom.aval.shape)


def shapes_of(equation: Any) -> tuple[Shape, Shape]:
  """Shapes of an equation's first operand and first output."""
  return shape_of(equation.invars[0]), shape_of(equation.outvars[0])


def views_of(values: Sequence[Value]) -> tuple[View, ...]:
  """All views of the values."""
  return tuple(view for value in values for view in value.views)


def outputs_of(values: Sequence[Value]) -> tuple[View, ...]:
  """The products that the values are sums of, each once."""
  return tuple(dict.fromkeys(view for value in values for view in value.outputs))


def origins_of(values: Sequence[Value]) -> tuple[View, ...]:
  """The products that the values are computed from, each once."""
  return tuple(dict.fromkeys(view for value in values for view in value.origins))
