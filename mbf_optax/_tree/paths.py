"""Parameter trees as flat dictionaries from readable paths to leaves."""

from collections.abc import Iterator
from typing import Any

import jax

Leaves = dict[str, Any]


def flatten(tree: Any) -> Leaves:
  """Leaves of ``tree`` keyed by paths such as ``"params/Dense_0/kernel"``.

  ``None`` and ``optax.MaskedNode`` hold no leaves. The attribute under which a
  Flax box (``nn.Partitioned``, ``nnx.Param``) keeps its array is not part of the
  path, so boxed and plain parameters have the same names. A lone array is ``""``.
  """
  leaves: Leaves = {}
  for path, leaf in _named(tree):
    if path in leaves:
      raise ValueError(
        f"mbf_optax: two leaves of the parameter tree have the same path {path!r} once"
        ' keys are joined by "/"; rename the keys so that the paths differ.'
      )
    leaves[path] = leaf
  return leaves


def unflatten(like: Any, leaves: Leaves) -> Any:
  """A tree of the structure of ``like`` with the leaves of ``leaves`` in it."""
  values = [leaves[path] for path, _ in _named(like)]
  return jax.tree.unflatten(jax.tree.structure(like), values)


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
  """Leaves in their order, each with its path."""
  nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
  for keys, node in nodes:
    for within, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
      is_value = _is_box(node) and getattr(within[-1], "name", None) == "value"
      yield joined((*keys, *(within[:-1] if is_value else within))), leaf


def _is_box(node: Any) -> bool:
  """Whether a node is one of Flax's around an array, Linen's or NNX's."""
  return hasattr(node, "unbox") or hasattr(node, "get_value")


def joined(keys: tuple[Any, ...]) -> str:
  """The path of a node, of the keys that lead to it."""
  return "/".join(_key(entry) for entry in keys)


def _key(entry: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)
