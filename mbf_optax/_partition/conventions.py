"""What a convention is: where a library keeps inputs, outputs and spatial offsets.

A convention knows weights and biases by their names (or their shapes, or the types of
their modules) and says which axes of a weight are what.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from mbf_optax._partition.parameters import Parameters, beside, name_of

Kind = Literal["conv", "dense"]

# No convolution has as many offsets; a kernel that does, a patch embedding of 14 x 14
# say, is moved by its own width and so a dense layer over whole patches.
PATCH = 196


class Geometry(NamedTuple):
  """The axes of a weight array; those not named here count blocks.

  Attributes:
    stack_axes: axes that stack independent layers.
    spatial: axes of a convolution's offsets.
    inputs: axes of the inputs.
    bias_axes: the axes that a bias has, in its order: outputs and stacked axes.
  """

  stack_axes: tuple[int, ...]
  spatial: tuple[int, ...]
  inputs: tuple[int, ...]
  bias_axes: tuple[int, ...]


class Convention(Protocol):
  """How a library names and lays out its parameters."""

  def reads(self, path: str, params: Parameters) -> bool:
    """Whether the leaf at ``path`` is a weight that this convention knows."""

  def bias_of(self, path: str, params: Parameters) -> str | None:
    """Path of the bias of the weight at ``path``."""

  def weight_of(self, path: str, params: Parameters) -> str | None:
    """Path of the weight of the bias at ``path``."""

  def excludes(self, path: str, params: Parameters) -> bool:
    """Whether the weight at ``path`` belongs to a norm or an embedding."""

  def geometry(self, path: str, params: Parameters, kind: Kind | None) -> Geometry:
    """Axes of the weight at ``path``, of rank 2 or more.

    Args:
      path: a weight, or a leaf that an override reads as one.
      params: the tree.
      kind: what it must be, or ``None`` to find out.
    """


@dataclasses.dataclass(frozen=True)
class Named:
  """Weights and biases by the names of a library.

  Attributes:
    weights: names of weight arrays; the first is the one that a bias stands beside.
    bias: name of a bias.
  """

  weights: tuple[str, ...]
  bias: str

  def reads(self, path: str, params: Parameters) -> bool:
    del params
    return name_of(path) in self.weights

  def bias_of(self, path: str, params: Parameters) -> str | None:
    return self._sibling(path, self.weights[0], self.bias, params)

  def weight_of(self, path: str, params: Parameters) -> str | None:
    return self._sibling(path, self.bias, self.weights[0], params)

  def _sibling(
    self, path: str, name: str, other: str, params: Parameters
  ) -> str | None:
    candidate = beside(path, other)
    return candidate if name_of(path) == name and candidate in params else None


def unstacked(path: str | None, params: Parameters) -> tuple[int, ...]:
  """Shape of a bias without its stacked axes, ``()`` without a bias."""
  if path is None:
    return ()
  stack = params.stack_axes(path)
  return tuple(n for axis, n in enumerate(params.shape(path)) if axis not in stack)


def is_plausible_kernel(spatial: Sequence[int]) -> bool:
  """Whether these could be the offsets of a convolution without further evidence.

  Kernels are square, or small and odd: ``(3, 3)``, ``(1, 7)``; twelve layers of eight
  experts are neither.
  """
  square = len(set(spatial)) == 1 and len(spatial) > 1
  odd = all(size % 2 == 1 and size <= 11 for size in spatial)
  return square or (odd and math.prod(spatial) < PATCH)
