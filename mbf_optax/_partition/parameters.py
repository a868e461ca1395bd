"""A parameter tree with what is looked up in it, in time linear in its leaves."""

import collections
import functools
from collections.abc import Callable
from typing import Any

from mbf_optax._partition.pairs import Entry, pairs_of
from mbf_optax._partition.stacks import Stacks
from mbf_optax._tree import paths


class Parameters:
  """The leaves of a tree by path, and what stands beside what."""

  def __init__(
    self, leaves: paths.Leaves, is_named: Callable[[str, "Parameters"], bool]
  ) -> None:
    """Of the leaves by path, and whether the one at a path is known by its name."""
    self.leaves = leaves
    self._is_named = is_named

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

  def bias_by_shape(self, path: str) -> str | None:
    """The bias of a weight without a known name."""
    return self._biases.get(path)

  def weight_by_shape(self, path: str) -> str | None:
    """The weight of a bias without a known name."""
    return self._weights.get(path)

  @functools.cached_property
  def _stacks(self) -> Stacks:
    return Stacks(self.leaves)

  @functools.cached_property
  def _biases(self) -> dict[str, str]:
    modules = collections.defaultdict(list)
    for path in self.leaves:
      if not self._is_named(path, self):
        entry = Entry(name_of(path), path, self.shape(path))
        modules[module_of(path)].append(entry)
    found: dict[str, str] = {}
    for entries in modules.values():
      found.update(pairs_of(entries))
    return found

  @functools.cached_property
  def _weights(self) -> dict[str, str]:
    return {bias: weight for weight, bias in self._biases.items()}


def module_of(path: str) -> str:
  """The path of the module (dictionary, tuple or list) that holds a leaf."""
  return path.rpartition("/")[0]


def name_of(path: str) -> str:
  """The last key of a path."""
  return path.rpartition("/")[2]


def beside(path: str, name: str) -> str:
  """The path of the leaf ``name`` in the module of ``path``."""
  module, slash, _ = path.rpartition("/")
  return f"{module}{slash}{name}"
