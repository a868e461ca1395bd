"""Dense layers and convolutions without a known name, by their shapes.

See :mod:`mbf_optax._partition.pairs` for what belongs together. A lone matrix is a
dense layer too, as users expect who know optimizers that go by rank, unless its name
speaks of an embedding, a position, a norm or a token. A row ``(1, n)`` is no matrix.

Where a bias fits the last axis a matrix is ``(in, out)``, where it fits the first alone
``(out, in)``. Square and lone matrices have the layout of the partition's library.
"""

import dataclasses

from mbf_optax._partition import names
from mbf_optax._partition.channels_first import channels_first_geometry
from mbf_optax._partition.conventions import Convention, Geometry, Kind
from mbf_optax._partition.pairs import is_kernel
from mbf_optax._partition.parameters import Parameters, module_of, name_of


@dataclasses.dataclass(frozen=True)
class ByShape:
  """What no name tells.

  Attributes:
    library: reads what an override names; its layout is that of ambiguous matrices.
    outputs_first: whether that layout is ``(out, in)``.
  """

  library: Convention
  outputs_first: bool

  def reads(self, path: str, params: Parameters) -> bool:
    stack, shape = params.stack_axes(path), params.shape(path)
    own = tuple(n for axis, n in enumerate(shape) if axis not in stack)
    if params.bias_by_shape(path) is not None:
      return len(own) == 2 or not stack
    if says_elementwise(path) or params.weight_by_shape(path) is not None:
      return False
    if len(own) == 4:
      return not stack and _says_convolution(path) and is_kernel(own)
    return len(own) == 2 and own[0] != 1

  def bias_of(self, path: str, params: Parameters) -> str | None:
    return params.bias_by_shape(path)

  def weight_of(self, path: str, params: Parameters) -> str | None:
    return params.weight_by_shape(path)

  def excludes(self, path: str, params: Parameters) -> bool:
    del path, params
    return False

  def geometry(self, path: str, params: Parameters, kind: Kind | None) -> Geometry:
    if kind is not None or not self.reads(path, params):
      return self.library.geometry(path, params, kind)
    shape, bias_path = params.shape(path), params.bias_by_shape(path)
    outputs = () if bias_path is None else params.shape(bias_path)[-1:]
    stack = params.stack_axes(path)
    if len(shape) == 3 and not stack:
      stack = (0,)
    own = tuple(axis for axis in range(len(shape)) if axis not in stack)
    if len(own) == 2:
      return self._matrix(shape, stack, own, outputs)
    return self._kernel(shape, outputs)

  def _matrix(
    self,
    shape: tuple[int, ...],
    stack: tuple[int, ...],
    own: tuple[int, ...],
    outputs: tuple[int, ...],
  ) -> Geometry:
    first, last = own
    fits_first, fits_last = ((shape[axis],) == outputs for axis in own)
    if self.outputs_first if fits_first == fits_last else fits_first:
      first, last = last, first
    return Geometry(stack, (), (first,), (*stack, last))

  def _kernel(self, shape: tuple[int, ...], outputs: tuple[int, ...]) -> Geometry:
    front = shape[0] == shape[1] and outputs in ((), shape[-1:])
    back = shape[2] == shape[3] and outputs in ((), shape[:1])
    if back and (self.outputs_first or not front):
      return channels_first_geometry(4, 0, is_conv=True)
    return Geometry((), (0, 1), (2,), (3,))


def says_elementwise(path: str) -> bool:
  """Whether the names of a leaf and its module speak of no dense layer."""
  module = name_of(module_of(path))
  if names.says_elementwise(name_of(path)):
    return True
  return names.says_embedding(module) or names.says_norm(module)


def _says_convolution(path: str) -> bool:
  module = name_of(module_of(path))
  return names.says_convolution(name_of(path)) or names.says_convolution(module)
