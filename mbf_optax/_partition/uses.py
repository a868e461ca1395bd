"""What an equation does with a parameter, and the record of all such uses."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mbf_optax._partition.conventions import PATCH
from mbf_optax._partition.views import NEW, Atom, Shape, Span, View, shared_axes

Role = Literal["contracted", "stacked", "counted", "spatial"]
Kind = Literal[
  "product", "convolution", "patches", "upsampling", "elementwise", "divided"
]


class Use(NamedTuple):
  """One way to use an array.

  Attributes:
    kind: ``"product"`` for neurons over the contracted axes; ``"convolution"`` for
      kernels over the spatial axes; ``"patches"`` for a convolution that is a dense
      layer over the offsets and inputs; ``"upsampling"`` for a transposed one whose
      patches do not overlap, so that each offset has neurons of its own;
      ``"elementwise"``; or ``"divided"`` where one axis of the array is several axes of
      a product, with different roles.
    inputs: the contracted axes, without the spatial ones.
    spatial: the axes of a convolution's offsets.
    stack: the axes that stack independent layers.
  """

  kind: Kind
  inputs: tuple[int, ...] = ()
  spatial: tuple[int, ...] = ()
  stack: tuple[int, ...] = ()


class Record(NamedTuple):
  """A use of a parameter.

  Attributes:
    path: the parameter.
    use: how it is used.
    equation: in words, for messages.
    with_data: whether it meets something that is no parameter; products of
      parameters alone count where there is nothing else.
  """

  path: str
  use: Use
  equation: str
  with_data: bool


class Addition(NamedTuple):
  """A parameter added to the output of a product, one element for every output.

  Attributes:
    path: the bias.
    weight: the parameter of the product.
    axes: the axes of the weight that those of the bias are.
    step: when; of several biases of a weight the first is in its blocks.
  """

  path: str
  weight: str
  axes: tuple[tuple[int, int], ...]
  step: int


@dataclasses.dataclass
class Recorder:
  """What was seen so far.

  Attributes:
    uses: by a number that views refer to.
    withdrawn: numbers of uses that turned out to make a weight.
    additions: of biases.
    stacks: axes of parameters that stack layers, since the layers after them are
      stacked along these outputs: an ensemble whose first layers share their input.
    lost: for parameters, an equation through which they could not be followed.
  """

  uses: dict[int, Record] = dataclasses.field(default_factory=dict)
  withdrawn: set[int] = dataclasses.field(default_factory=set)
  additions: list[Addition] = dataclasses.field(default_factory=list)
  stacks: set[tuple[str, int]] = dataclasses.field(default_factory=set)
  lost: dict[str, str] = dataclasses.field(default_factory=dict)

  def merge(self, other: "Recorder") -> None:
    """Adds all that another one saw."""
    self.uses |= other.uses
    self.withdrawn |= other.withdrawn
    self.additions += other.additions
    self.stacks |= other.stacks
    self.lost = other.lost | self.lost

  def stack_alike(self, span: Span, axis: int, origins: Iterable[View]) -> None:
    """Records that weights stack layers where what they made meets stacked weights.

    Args:
      span: what stacks the layers of a weight.
      axis: the axis of the other operand that meets it.
      origins: views of that operand.
    """
    if not span.real:
      return
    for origin in origins:
      atoms = origin.axes[axis].real
      if atoms and atoms[0][1:] == span.real[0][1:] and atoms[0].stride == 1:
        self.stacks.add((origin.path, atoms[0].axis))

  def add_bias(self, bias: View, outputs: Iterable[View], step: int) -> bool:
    """Whether an addition is that of a bias, to the latest product that fits it."""
    for output in sorted(outputs, key=lambda view: view.step, reverse=True):
      axes = shared_axes(output, bias)
      if axes is not None and output.path != bias.path:
        pairs = tuple(sorted(axes.items()))
        self.withdrawn.update(bias.events)
        self.additions.append(Addition(bias.path, output.path, pairs, step))
        return True
    return False


def axis_roles(view: View, roles: Mapping[int, Role]) -> dict[Role, set[int]]:
  """The parameter's axes by what the axes of a value are used for.

  Args:
    view: the parameter in the value.
    roles: of the value's axes; the others are ``"counted"``.
  """
  found: dict[Role, set[int]] = {
    "contracted": set(),
    "stacked": {atom.axis for atom in view.stacked if atom.axis != NEW},
    "counted": set(),
    "spatial": set(),
  }
  for axis, span in enumerate(view.axes):
    found[roles.get(axis, "counted")] |= {atom.axis for atom in span.real}
  return found


def _use(kind: Kind, found: dict[Role, set[int]]) -> Use:
  sets = list(found.values())
  if sum(map(len, sets)) != len(set().union(*sets)):
    return Use("divided")
  inputs, spatial, stack = (
    tuple(sorted(found[role])) for role in ("contracted", "spatial", "stacked")
  )
  if not inputs and not spatial:
    return Use("elementwise")
  return Use(kind, inputs, spatial, stack)


def in_product(view: View, contracted: Sequence[int], stacked: Sequence[int]) -> Use:
  """The use of an operand of a product (``dot_general``)."""
  roles: dict[int, Role] = dict.fromkeys(contracted, "contracted")
  roles |= dict.fromkeys(stacked, "stacked")
  return _use("product", axis_roles(view, roles))


def in_convolution(view: View, kernel: Shape, params: Mapping[str, Any]) -> Use:
  """The use of a kernel of ``conv_general_dilated``."""
  outputs, inputs, *spatial = params["dimension_numbers"].rhs_spec
  roles: dict[int, Role] = dict.fromkeys(spatial, "spatial")
  roles[inputs] = "contracted"
  found = axis_roles(view, roles)
  stack = ensemble(view.axes[outputs].real, params["feature_group_count"])
  found["stacked"] |= stack
  found["counted"] -= stack
  offsets = tuple(kernel[axis] for axis in spatial)
  if offsets == tuple(params["lhs_dilation"]) and math.prod(offsets) > 1:
    return _use("upsampling", found)
  moved = offsets == tuple(params["window_strides"])
  if moved or math.prod(offsets) == 1 or math.prod(offsets) >= PATCH:
    return _use("patches", found)
  return _use("convolution", found)


def ensemble(outputs: Sequence[Atom], groups: int) -> set[int]:
  """The axes among a kernel's outputs that stack the kernels of an ensemble.

  ``vmap`` over kernels and images puts the layers one after another along the outputs
  and makes them groups. The outputs of a grouped convolution are one axis.
  """
  axes: set[int] = set()
  for atom in outputs[:-1]:
    if atom.axis == outputs[-1].axis or groups % atom.size:
      break
    axes.add(atom.axis)
    groups //= atom.size
  return axes
