"""The layout of Flax and Haiku: ``(*spatial, in, out)`` and ``(in, out)``.

Where a kernel has three axes of its own or more, its axes depend on what it is: a
convolution, a projection with several axes of inputs or of outputs, or independent
layers in a stack that nothing gives away. Evidence is asked for in this order:

1. attention by name: queries, keys and values have one axis of inputs, the projection
   that gathers the heads has one of outputs;
2. a bias of several axes counts the neurons, ``(heads, size)`` say;
3. a module named like a convolution is one, a module named like a dense layer
   (``Dense_0``, ``mlp``, ``experts``) is a stack of them;
4. a module named ``DenseGeneral`` or ``Einsum`` with a bias of one axis contracts all
   others;
5. a kernel of two or more square or small odd axes of offsets is a convolution.

What is left is read in the way that does no harm whatever it is: blocks run over the
axis before the last, and no matrix is shared across the axes in front of it. For a
stack and for experts that is the right reading, for a convolution or a projection a
finer one than could be. A bias or norm that ``optax.partition`` hides takes no part in
1, 3 and 5, so that most kernels are read alike with and without it.

A matrix whose bias fits its first axis alone is ``(out, in)``; a square one is taken as
``(in, out)``.
"""

import dataclasses

from mbf_optax._partition import names
from mbf_optax._partition.conventions import (
  Geometry,
  Kind,
  Named,
  is_plausible_kernel,
  unstacked,
)
from mbf_optax._partition.parameters import Parameters, beside, module_of, name_of

_INPUTS = ("query", "q", "q_proj", "query_proj", "to_q", "qkv", "qkv_proj", "to_qkv")
_OUTPUTS = ("out", "o", "o_proj", "out_proj", "to_out", "output")
_JOINT = {"qkv", "kv"}  # they have one more axis, of two or three


@dataclasses.dataclass(frozen=True)
class ChannelsLast(Named):
  """Flax, or Haiku with its names."""

  weights: tuple[str, ...] = ("kernel",)
  bias: str = "bias"

  def excludes(self, path: str, params: Parameters) -> bool:
    """Flax's norms and embeddings have names of their own for their arrays."""
    if name_of(path) == "kernel" or self.bias_of(path, params) is not None:
      return False
    module = name_of(module_of(path))
    return names.says_embedding(module) or names.says_norm(module)

  def geometry(self, path: str, params: Parameters, kind: Kind | None) -> Geometry:
    stack, ndim = params.stack_axes(path), params[path].ndim
    if ndim - len(stack) < 2:
      stack = ()
    axes = tuple(axis for axis in range(ndim) if axis not in stack)
    bias = unstacked(self.bias_of(path, params), params)
    layout = _Layout(params.shape(path), stack, axes, bias)
    if kind == "conv":
      return layout.convolution()
    if kind == "dense" or len(axes) == 2:
      return layout.neurons(1)
    return self._attention(path, params, layout) or self._other(path, layout)

  def _other(self, path: str, layout: "_Layout") -> Geometry:
    module, ndim = name_of(module_of(path)), len(layout.axes)
    if 1 < len(layout.bias) < ndim and layout.sizes[-len(layout.bias) :] == layout.bias:
      return layout.neurons(len(layout.bias))
    if names.says_convolution(module):
      return layout.convolution()
    if names.says_dense(module):
      return layout.stacked(ndim - 2).neurons(1)
    if names.says_several_axes(module) and layout.bias:
      return layout.neurons(1)
    if ndim > 3 and is_plausible_kernel(layout.sizes[:-2]):
      return layout.convolution()
    return layout.stacked(ndim - 2).neurons(1)

  def _attention(
    self, path: str, params: Parameters, layout: "_Layout"
  ) -> Geometry | None:
    if self._is_attention_input(path, params, layout):
      words = names.words(name_of(module_of(path)))
      own = 3 + (not _JOINT.isdisjoint(words) and len(layout.axes) > 3)
    elif self._is_attention_output(path, params, layout):
      own = 3
    else:
      return None
    layout = layout.stacked(max(0, len(layout.axes) - own))
    if self._shares_its_stack(path, params):
      return layout.stacked(len(layout.axes) - 2).neurons(1)
    is_input = names.says_attention_input(name_of(module_of(path)))
    return layout.neurons(len(layout.axes) - 1 if is_input else 1)

  def _is_attention_input(
    self, path: str, params: Parameters, layout: "_Layout"
  ) -> bool:
    """By its name; a convolution of that name has a bias of one axis."""
    if not names.says_attention_input(name_of(module_of(path))):
      return False
    return not layout.bias or len(layout.bias) > 1 or len(layout.axes) == 2

  def _is_attention_output(
    self, path: str, params: Parameters, layout: "_Layout"
  ) -> bool:
    """By its name, and that of a projection of several axes beside its module."""
    if not names.says_attention_output(name_of(module_of(path))):
      return False
    query = self._module_beside(path, _INPUTS, params)
    if query is None or len(layout.bias) > 1:
      return False
    bias = unstacked(self.bias_of(query, params), params)
    return params[query].ndim > 2 and len(bias) != 1

  def _shares_its_stack(self, path: str, params: Parameters) -> bool:
    """Whether queries and outputs have one leading size and three axes.

    Queries ``(in, heads, size)`` and outputs ``(heads, size, out)`` never do.
    """
    query = self._module_beside(path, _INPUTS, params)
    output = self._module_beside(path, _OUTPUTS, params)
    if query is None or output is None or params.stack_axes(query):
      return False
    shapes = params.shape(query), params.shape(output)
    return len(shapes[0]) == len(shapes[1]) == 3 and shapes[0][0] == shapes[1][0]

  def _module_beside(
    self, path: str, modules: tuple[str, ...], params: Parameters
  ) -> str | None:
    """The weight of the first of these modules beside the module of ``path``."""
    module = module_of(path)
    found = (f"{beside(module, name)}/{name_of(path)}" for name in modules)
    return next((weight for weight in found if weight in params), None)


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A weight's own axes beside its stacked ones.

  Attributes:
    shape: shape of the weight.
    stack: its stacked axes.
    axes: the others.
    bias: shape of its bias without stacked axes, ``()`` without a bias.
  """

  shape: tuple[int, ...]
  stack: tuple[int, ...]
  axes: tuple[int, ...]
  bias: tuple[int, ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Sizes of the own axes."""
    return tuple(self.shape[axis] for axis in self.axes)

  def stacked(self, count: int) -> "_Layout":
    """With the first axes stacked as well."""
    stack = tuple(sorted(self.stack + self.axes[:count]))
    return dataclasses.replace(self, stack=stack, axes=self.axes[count:])

  def neurons(self, outputs: int) -> Geometry:
    """A dense layer with this many axes of outputs behind its inputs."""
    inputs, counted = self.axes[:-outputs], self.axes[-outputs:]
    if len(self.axes) == 2 and self._is_transposed():
      inputs, counted = counted, inputs
    return Geometry(self.stack, (), inputs, self._with_stack(counted))

  def convolution(self) -> Geometry:
    """A convolution; a transposed one may be stored ``(*spatial, out, in)``."""
    inputs, counted = self.axes[-2:-1], self.axes[-1:]
    if self._is_transposed():
      inputs, counted = counted, inputs
    return Geometry(self.stack, self.axes[:-2], inputs, self._with_stack(counted))

  def _is_transposed(self) -> bool:
    return self.bias == self.sizes[-2:-1] and self.bias != self.sizes[-1:]

  def _with_stack(self, outputs: tuple[int, ...]) -> tuple[int, ...]:
    """Output axes with the stacked axes where they stand in the bias.

    A stack keeps its position from the front or, behind all own axes or one before
    the last, from the end.
    """
    position = self.stack[0] if self.stack else 0
    if position > 1 and position >= len(self.axes) - 1:
      position = len(outputs) - (len(self.axes) - position)
    return outputs[:position] + self.stack + outputs[position:]
