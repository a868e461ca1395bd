"""What Flax's names and shapes say about a parameter."""

import re
from typing import Any

from mbf_optax import tree


def sibling(path: str, name: str, other: str, leaves: tree.Leaves) -> str | None:
  """Path of the leaf ``other`` beside ``path`` if that is called ``name``."""
  module, _, own = path.rpartition("/")
  candidate = f"{module}/{other}" if module else other
  return candidate if own == name and candidate in leaves else None


def single_offset(leaf: Any, stack: int) -> bool:
  """Whether a kernel ``(*stack, *spatial, in, out)`` has one spatial offset."""
  return all(size == 1 for size in leaf.shape[stack:-2])


def output_axes(path: str, leaves: tree.Leaves, stack: int) -> int | None:
  """Number of trailing axes that count neurons; ``None`` for a convolution."""
  ndim = leaves[path].ndim - stack
  if ndim == 2 or _is_attention_output(path, leaves):
    return 1
  if _is_attention_input(path, leaves):
    return ndim - 1
  bias_path = sibling(path, "kernel", "bias", leaves)
  bias_ndim = 0 if bias_path is None else leaves[bias_path].ndim - stack
  return bias_ndim if bias_ndim > 1 else None


def _is_attention_input(path: str, leaves: tree.Leaves) -> bool:
  module = path.split("/")[-2:-1]
  return module in (["query"], ["key"], ["value"]) and leaves[path].ndim >= 3


def _is_attention_output(path: str, leaves: tree.Leaves) -> bool:
  attention, _, module = path.rpartition("/")[0].rpartition("/")
  query = f"{attention}/query/kernel" if attention else "query/kernel"
  return module == "out" and query in leaves and leaves[path].ndim >= 3


_RANK_IN_STACK = {"kernel": 3, "embedding": 3, "bias": 2, "scale": 2}
_LIFTED_NAME = re.compile(r"(Scan|Vmap)[A-Z]")


def stacked_axes(path: str, leaves: tree.Leaves) -> int:
  """Number of leading axes of ``path`` that stack independent layers."""
  if _is_attention_input(path, leaves) or _is_attention_output(path, leaves):
    return leaves[path].ndim - 3
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
  evident = _LIFTED_NAME.match(module.rpartition("/")[2]) is not None
  sizes = set()
  for path, leaf in leaves.items():
    if path.startswith(module + "/"):
      name = path.rpartition("/")[2]
      if leaf.ndim - stack < _RANK_IN_STACK.get(name, 1):
        return False
      sizes.add(leaf.shape[stack])
      evident |= name in ("bias", "scale")
  return evident and len(sizes) == 1
