"""Parameter trees as flat dictionaries from readable paths to leaves."""

from typing import Any

import jax

Leaves = dict[str, Any]


def flatten(tree: Any) -> Leaves:
  """Leaves of ``tree`` keyed by paths such as ``"params/Dense_0/kernel"``.

  ``None`` and ``optax.MaskedNode`` hold no leaves. The attribute under which a
  Flax box (``nn.Partitioned``, ``nnx.Param``) keeps its array is not part of the
  path, so boxed and plain parameters have the same names. A lone array is ``""``.
  """
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  leaves: Leaves = {}
  for keys, leaf in pairs:
    path = _render(keys)
    if path in leaves:
      raise ValueError(
        f"mbf_optax: two leaves of the parameter tree have the same path {path!r} once"
        ' keys are joined by "/"; rename the keys so that the paths differ.'
      )
    leaves[path] = leaf
  return leaves


def unflatten(like: Any, leaves: Leaves) -> Any:
  """A tree of the structure of ``like`` with the leaves of ``leaves`` in it."""
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_render(path)], like)


def _render(path: tuple[Any, ...]) -> str:
  if path and getattr(path[-1], "name", None) == "value":
    path = path[:-1]
  return joined(path)


def joined(keys: tuple[Any, ...]) -> str:
  """The path of a node, of the keys that lead to it."""
  return "/".join(_key(entry) for entry in keys)


def _key(entry: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)
