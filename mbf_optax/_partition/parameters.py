"""A parameter tree with what is looked up in it, in time linear in its leaves."""

import functools
from typing import Any

from mbf_optax._partition.stacks import Stacks
from mbf_optax._tree import paths as tree


class Parameters:
  """The leaves of a tree by path, and what stands beside what.

  Attributes:
    leaves: arrays or shapes by path.
  """

  def __init__(self, leaves: tree.Leaves) -> None:
    self.leaves = leaves

  def __contains__(self, path: str) -> bool:
    return path in self.leaves

  def __getitem__(self, path: str) -> Any:
    return self.leaves[path]

  def shape(self, path: str) -> tuple[int, ...]:
    """Shape of the leaf at ``path``."""
    return tuple(self.leaves[path].shape)

  def stack_axes(self, path: str) -> tuple[int, ...]:
    """Axes of the leaf at ``path`` that stack independent layers."""
    ndim = len(self.leaves[path].shape)
    return tuple(position % ndim for position in self._stacks.positions(path))

  @functools.cached_property
  def _stacks(self) -> Stacks:
    return Stacks(self.leaves)


def module_of(path: str) -> str:
  """The path of the module (dictionary, tuple or list) that holds a leaf."""
  return path.rpartition("/")[0]


def name_of(path: str) -> str:
  """The last key of a path."""
  return path.rpartition("/")[2]


def beside(path: str, name: str) -> str:
  """The path of the leaf ``name`` in the module of ``path``."""
  module = module_of(path)
  return f"{module}/{name}" if "/" in path else name
