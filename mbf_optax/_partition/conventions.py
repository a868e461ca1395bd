"""Where the libraries keep inputs, outputs and spatial offsets of a weight array.

A convention knows the names of weights and biases and says which axes are what; it
looks at names and shapes alone.
"""

import dataclasses
import re
from typing import NamedTuple, Protocol

from mbf_optax._partition.parameters import Parameters, beside, module_of, name_of


class Geometry(NamedTuple):
  """The axes of a weight array; those not named here count output channels.

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

  @property
  def weights(self) -> tuple[str, ...]:
    """Names of weight arrays; the first is the one that a bias stands beside."""

  @property
  def bias(self) -> str:
    """Name of a bias."""

  def excludes(self, path: str) -> bool:
    """Whether the weight at ``path`` belongs to a norm or an embedding by its name."""

  def geometry(self, path: str, params: Parameters, dense: bool) -> Geometry:
    """Axes of the weight at ``path``, of rank 2 or more; ``dense`` if it must be."""


def bias_beside(path: str, convention: Convention, params: Parameters) -> str | None:
  """Path of the bias beside the weight at ``path``."""
  return _sibling(path, convention.weights[0], convention.bias, params)


def weight_beside(path: str, convention: Convention, params: Parameters) -> str | None:
  """Path of the weight beside the bias at ``path``."""
  return _sibling(path, convention.bias, convention.weights[0], params)


def _sibling(path: str, name: str, other: str, params: Parameters) -> str | None:
  candidate = beside(path, other)
  return candidate if name_of(path) == name and candidate in params else None


@dataclasses.dataclass(frozen=True)
class ChannelsLast:
  """Flax and Haiku: ``(*spatial, in, out)`` and ``(in, out)``, with stacked axes.

  Attention projections of Flax have several axes of inputs or of outputs.
  """

  weights: tuple[str, ...] = ("kernel",)
  bias: str = "bias"

  def excludes(self, path: str) -> bool:
    del path
    return False  # norms and embeddings have names of their own for their arrays

  def geometry(self, path: str, params: Parameters, dense: bool) -> Geometry:
    stack = self._stack_axes(path, params)
    axes = tuple(axis for axis in range(params[path].ndim) if axis not in stack)
    outputs = 1 if dense else self._output_axes(path, params, stack, len(axes))
    if outputs is None:
      spatial, inputs, counted = axes[:-2], axes[-2:-1], axes[-1:]
    else:
      spatial, inputs, counted = (), axes[:-outputs], axes[-outputs:]
    return Geometry(stack, spatial, inputs, _with_stack(counted, stack, len(axes)))

  def _output_axes(
    self, path: str, params: Parameters, stack: tuple[int, ...], ndim: int
  ) -> int | None:
    """Number of trailing axes that count neurons; ``None`` for a convolution."""
    if ndim <= 2 or _is_attention_output(path, params):
      return 1
    if _is_attention_input(path, params):
      return ndim - 1
    bias_path = bias_beside(path, self, params)
    bias_ndim = 0 if bias_path is None else params[bias_path].ndim - len(stack)
    return bias_ndim if 1 < bias_ndim < ndim else None

  def _stack_axes(self, path: str, params: Parameters) -> tuple[int, ...]:
    stack, ndim = params.stack_axes(path), params[path].ndim
    if _is_attention_input(path, params) or _is_attention_output(path, params):
      # They have three axes of their own, whatever else would look like a stack.
      return stack if len(stack) == ndim - 3 else tuple(range(ndim - 3))
    return stack if len(stack) <= ndim - 2 else ()


def _with_stack(
  outputs: tuple[int, ...], stack: tuple[int, ...], ndim: int
) -> tuple[int, ...]:
  """Output axes with the stacked axes where they stand in the bias.

  A stack keeps its position from the front or, behind all of the weight's ``ndim`` own
  axes or one before the last, from the end.
  """
  position = stack[0] if stack else 0
  if position >= ndim - 1 and position > 1:
    position = len(outputs) - (ndim - position)
  return outputs[:position] + stack + outputs[position:]


def _is_attention_input(path: str, params: Parameters) -> bool:
  """By its name; a convolution of that name has a bias of one axis."""
  module = path.split("/")[-2:-1]
  if module not in (["query"], ["key"], ["value"]) or params[path].ndim < 3:
    return False
  bias_path = beside(path, "bias")
  return bias_path not in params or params[bias_path].ndim == params[path].ndim - 1


def _is_attention_output(path: str, params: Parameters) -> bool:
  module = module_of(path)
  query = f"{beside(module, 'query')}/kernel"
  if name_of(module) != "out" or query not in params or params[path].ndim < 3:
    return False
  return _is_attention_input(query, params)


_NORM_OR_EMBEDDING = re.compile(r"(?i)(norm|embed)[^/]*/[^/]*$")


@dataclasses.dataclass(frozen=True)
class ChannelsFirst:
  """Equinox: ``(*stack, out, in, *spatial)`` and ``(*stack, out, in)``.

  A convolution's bias is ``(out, 1, ...)``; where it has more axes, they are stacked.
  """

  weights: tuple[str, ...] = ("weight", "weight_ih", "weight_hh")
  bias: str = "bias"

  def excludes(self, path: str) -> bool:
    return _NORM_OR_EMBEDDING.search(path) is not None

  def geometry(self, path: str, params: Parameters, dense: bool) -> Geometry:
    stack, ndim = self._stacked(path, params), params[path].ndim
    leading = tuple(range(stack))
    behind = tuple(range(stack + 1, ndim))
    spatial, inputs = ((), behind) if dense else (behind[1:], behind[:1])
    return Geometry(leading, spatial, inputs, tuple(range(stack + 1)))

  def _stacked(self, path: str, params: Parameters) -> int:
    """Number of stacked axes, which are in front."""
    bias_path = bias_beside(path, self, params)
    if bias_path is None:
      return 0
    weight, bias = params.shape(path), params.shape(bias_path)
    for stack in range(len(weight) - 1):
      spatial = len(weight) - 2 - stack
      if bias == weight[: stack + 1] + (1,) * spatial:
        return stack
    return 0
