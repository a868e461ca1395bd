"""Where the libraries keep inputs, outputs and spatial offsets of a weight array.

A convention knows the names of weights and biases and says which axes are what; it
looks at names and shapes alone.
"""

import dataclasses
import re
from typing import NamedTuple, Protocol

from mbf_optax._tree import paths as tree


class Geometry(NamedTuple):
  """The axes of a weight array; those not named here count output channels.

  Attributes:
    stack_axes: number of leading axes that stack independent layers.
    spatial: axes of a convolution's offsets.
    inputs: axes of the inputs.
  """

  stack_axes: int
  spatial: tuple[int, ...]
  inputs: tuple[int, ...]


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

  def geometry(self, path: str, leaves: tree.Leaves, dense: bool) -> Geometry:
    """Axes of the weight at ``path``, of rank 2 or more; ``dense`` if it must be."""


def bias_beside(path: str, convention: Convention, leaves: tree.Leaves) -> str | None:
  """Path of the bias beside the weight at ``path``."""
  return _sibling(path, convention.weights[0], convention.bias, leaves)


def weight_beside(path: str, convention: Convention, leaves: tree.Leaves) -> str | None:
  """Path of the weight beside the bias at ``path``."""
  return _sibling(path, convention.bias, convention.weights[0], leaves)


def name_of(path: str) -> str:
  """The last key of a path."""
  return path.rpartition("/")[2]


def _sibling(path: str, name: str, other: str, leaves: tree.Leaves) -> str | None:
  candidate = path.removesuffix(name) + other
  return candidate if name_of(path) == name and candidate in leaves else None


@dataclasses.dataclass(frozen=True)
class ChannelsLast:
  """Flax and Haiku: ``(*stack, *spatial, in, out)`` and ``(*stack, in, out)``.

  Attention projections of Flax have several axes of inputs or of outputs.
  """

  weights: tuple[str, ...] = ("kernel",)
  bias: str = "bias"

  def excludes(self, path: str) -> bool:
    del path
    return False  # norms and embeddings have names of their own for their arrays

  def geometry(self, path: str, leaves: tree.Leaves, dense: bool) -> Geometry:
    ndim = leaves[path].ndim
    stack = self._stack_axes(path, leaves)
    outputs = 1 if dense else self._output_axes(path, leaves, stack)
    if outputs is None:
      return Geometry(stack, tuple(range(stack, ndim - 2)), (ndim - 2,))
    return Geometry(stack, (), tuple(range(stack, ndim - outputs)))

  def _output_axes(self, path: str, leaves: tree.Leaves, stack: int) -> int | None:
    """Number of trailing axes that count neurons; ``None`` for a convolution."""
    ndim = leaves[path].ndim - stack
    if ndim == 2 or _is_attention_output(path, leaves):
      return 1
    if _is_attention_input(path, leaves):
      return ndim - 1
    bias_path = bias_beside(path, self, leaves)
    bias_ndim = 0 if bias_path is None else leaves[bias_path].ndim - stack
    return bias_ndim if 1 < bias_ndim < ndim else None

  def _stack_axes(self, path: str, leaves: tree.Leaves) -> int:
    if _is_attention_input(path, leaves) or _is_attention_output(path, leaves):
      return leaves[path].ndim - 3
    return stacked_axes(path, leaves)


def _is_attention_input(path: str, leaves: tree.Leaves) -> bool:
  """By its name; a convolution of that name has a bias of one axis."""
  module = path.split("/")[-2:-1]
  if module not in (["query"], ["key"], ["value"]) or leaves[path].ndim < 3:
    return False
  bias = leaves.get(path.removesuffix("kernel") + "bias")
  return bias is None or bias.ndim == leaves[path].ndim - 1


def _is_attention_output(path: str, leaves: tree.Leaves) -> bool:
  attention, _, module = path.rpartition("/")[0].rpartition("/")
  query = f"{attention}/query/kernel" if attention else "query/kernel"
  if module != "out" or query not in leaves or leaves[path].ndim < 3:
    return False
  return _is_attention_input(query, leaves)


_LEAST_RANK_IN_STACK = {
  "kernel": 3,
  "w": 3,
  "w_i": 3,
  "w_h": 3,
  "embedding": 3,
  "bias": 2,
  "b": 2,
  "scale": 2,
}
_TELLING = ("bias", "b", "scale")
_LIFTED_NAME = re.compile(r"(Scan|Vmap)[A-Z]")


def stacked_axes(path: str, leaves: tree.Leaves) -> int:
  """Number of leading axes of ``path`` that stack independent layers."""
  stack = 0
  while any(_is_stack(module, leaves, stack) for module in _modules(path)):
    stack += 1
  return stack


def _modules(path: str) -> list[str]:
  keys = path.split("/")[:-1]
  return ["/".join(keys[: i + 1]) for i in range(len(keys))]


def _is_stack(module: str, leaves: tree.Leaves, stack: int) -> bool:
  """Whether all leaves of ``module`` have a stacked axis at position ``stack``.

  They must share its size and have one axis more than their kind needs, and a bias, a
  norm's scale or Linen's name for a lifted module must say so too: a lone kernel of
  rank 3 could as well be a convolution.
  """
  evident = _LIFTED_NAME.match(name_of(module)) is not None
  sizes = set()
  for path, leaf in leaves.items():
    if path.startswith(module + "/"):
      name = name_of(path)
      if leaf.ndim - stack < _LEAST_RANK_IN_STACK.get(name, 1):
        return False
      sizes.add(leaf.shape[stack])
      evident |= name in _TELLING
  return evident and len(sizes) == 1


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

  def geometry(self, path: str, leaves: tree.Leaves, dense: bool) -> Geometry:
    ndim = leaves[path].ndim
    stack = self._stack_axes(path, leaves)
    if dense:
      return Geometry(stack, (), tuple(range(stack + 1, ndim)))
    return Geometry(stack, tuple(range(stack + 2, ndim)), (stack + 1,))

  def _stack_axes(self, path: str, leaves: tree.Leaves) -> int:
    bias_path = bias_beside(path, self, leaves)
    if bias_path is None:
      return 0
    weight, bias = leaves[path].shape, leaves[bias_path].shape
    for stack in range(len(weight) - 1):
      spatial = len(weight) - 2 - stack
      if bias == weight[: stack + 1] + (1,) * spatial:
        return stack
    return 0
