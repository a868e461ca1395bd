"""The layout of Equinox: ``(*stack, out, in, *spatial)`` and ``(*stack, out, in)``.

A convolution's bias is ``(out, 1, ...)``; where it has more axes, they are stacked. A
norm's or embedding's array is called ``weight`` like all others, so that the name of
its module has to tell, unless a bias does: embeddings have none, and that of a norm is
of the shape of its weight. ``equinox_partition(model)`` knows the modules' types.

A ``weight`` of rank 2 whose bias fits its last axis alone is ``(in, out)``; a square
one, or one without bias, is ``(out, in)``. One of rank 3 without bias and a telling
name may be a convolution ``(out, in, offsets)`` or a stack ``(layers, out, in)``: its
blocks run over the last axis, with no matrix shared across the first, which suits both.
"""

import dataclasses

from mbf_optax._partition import names
from mbf_optax._partition.conventions import (
  Geometry,
  Kind,
  Named,
  is_plausible_kernel,
)
from mbf_optax._partition.parameters import Parameters, module_of, name_of


@dataclasses.dataclass(frozen=True)
class ChannelsFirst(Named):
  """Equinox by its names."""

  weights: tuple[str, ...] = ("weight", "weight_ih", "weight_hh")
  bias: str = "bias"

  def excludes(self, path: str, params: Parameters) -> bool:
    bias_path = self.bias_of(path, params)
    weight = params.shape(path)
    if bias_path is not None:
      return params.shape(bias_path) == weight
    module = name_of(module_of(path))
    embeds = names.says_embedding(module) and len(weight) == 2
    return embeds or names.says_norm(module)

  def geometry(self, path: str, params: Parameters, kind: Kind | None) -> Geometry:
    shape, bias_path = params.shape(path), self.bias_of(path, params)
    bias = () if bias_path is None else params.shape(bias_path)
    if len(bias) == 1 and bias == shape[-1:] and bias != shape[:1]:
      spatial = tuple(range(len(shape) - 2)) if kind != "dense" else ()
      inputs = tuple(range(len(spatial), len(shape) - 1))
      return Geometry((), spatial, inputs, (len(shape) - 1,))
    stack = (
      len(params.stack_axes(path)) if bias_path is None else _stack_of(shape, bias)
    )
    if len(shape) - stack < 2:
      stack = 0
    is_conv = kind == "conv" or (
      kind is None and self._is_conv(path, shape, stack, bias)
    )
    if kind is None and not is_conv:
      stack = len(shape) - 2
    return channels_first_geometry(len(shape), stack, is_conv)

  def _is_conv(
    self, path: str, shape: tuple[int, ...], stack: int, bias: tuple[int, ...]
  ) -> bool:
    """Whether axes behind the inputs are offsets, not those before them a stack."""
    own = shape[stack:]
    if len(own) == 2:
      return False
    module = name_of(module_of(path))
    if bias or stack or names.says_convolution(module):
      return True
    if names.says_dense(module) or len(own) == 3:
      return False
    return is_plausible_kernel(own[2:])


def channels_first_geometry(ndim: int, stack: int, is_conv: bool) -> Geometry:
  """Axes of a weight with this many stacked ones in front."""
  behind = tuple(range(stack + 1, ndim))
  spatial, inputs = (behind[1:], behind[:1]) if is_conv else ((), behind)
  return Geometry(tuple(range(stack)), spatial, inputs, tuple(range(stack + 1)))


def _stack_of(weight: tuple[int, ...], bias: tuple[int, ...]) -> int:
  """Number of stacked axes by the bias; a convolution's has a one for every offset."""
  for stack in range(len(weight) - 1):
    ones = (1,) * (len(weight) - 2 - stack)
    if bias == weight[: stack + 1] + ones:
      return stack
  return 0
