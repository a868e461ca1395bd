"""Which axes of the arrays stack independent layers (scans, vmaps, ensembles).

A scan or a vmap gives every array of a module one more axis, at the same position and
of the same size. Whether a module is such a stack is therefore asked of all arrays
below it: each must have an axis more than its kind needs, with one size for all, and
one of them must tell that this is no accident: a lone kernel of rank 3 could as well
be a convolution, a bias or a norm's scale of rank 2 can only be stacked. Linen's names
for lifted modules (``ScanBlock_0``) tell too.
"""

import re
from collections.abc import Iterator

from mbf_optax._tree import paths as tree

_LEAST_RANK = {
  **dict.fromkeys(("kernel", "w", "w_i", "w_h", "embedding", "embeddings"), 2),
  **dict.fromkeys(("bias", "b", "scale", "offset"), 1),
}
_VECTORS = ("bias", "b", "scale", "offset")
_WEIGHT_BESIDE = {"bias": "kernel", "b": "w"}
_LIFTED_NAME = re.compile(r"(Scan|Vmap)[A-Z]")
# Where a stack that is not in front may be: Flax's ``variable_axes={"params": 1}``
# inserts its axis at position 1 of every array, a negative one counts from the end.
_ELSEWHERE = (1, -1, -2)


class Stacks:
  """The stacked axes of every array of a tree, found in one pass over its leaves."""

  def __init__(self, leaves: tree.Leaves) -> None:
    self._modules: dict[str, _Module] = {}
    for path, leaf in leaves.items():
      name, shape = path.rpartition("/")[2], tuple(leaf.shape)
      spare = len(shape) - _LEAST_RANK.get(name, 0)
      tells = name in _VECTORS
      tells_elsewhere = tells and not _counts_neurons(path, shape, leaves)
      for module in _modules(path):
        found = self._modules.setdefault(module, _Module(module, shape))
        found.add(shape, spare, tells, tells_elsewhere)

  def positions(self, path: str) -> tuple[int, ...]:
    """Positions of the stacked axes in the array at ``path``; negative from the end.

    The same positions hold for every array of the stacked module.
    """
    modules = [self._modules[module] for module in _modules(path)]
    for module in modules:  # from the outside in: the more arrays, the less by chance
      if module.leading():  # others may be stacked inside it
        return tuple(range(max(inner.leading() for inner in modules)))
      if module.elsewhere():
        return module.elsewhere()
    return ()


class _Module:
  """What the arrays below one module have in common."""

  def __init__(self, path: str, shape: tuple[int, ...]) -> None:
    self._tells = _LIFTED_NAME.match(path.rpartition("/")[2]) is not None
    self._tells_elsewhere = self._tells
    self._spare = len(shape)
    self._prefix = shape
    self._sizes = {at: _size(shape, at) for at in _ELSEWHERE}

  def add(
    self, shape: tuple[int, ...], spare: int, tells: bool, tells_elsewhere: bool
  ) -> None:
    """One more array: its shape, and its number of axes that could be stacked."""
    self._tells |= tells
    self._tells_elsewhere |= tells_elsewhere
    self._spare = min(self._spare, spare)
    pairs = zip(self._prefix, shape, strict=False)
    differ = (axis for axis, (a, b) in enumerate(pairs) if a != b)
    self._prefix = self._prefix[: next(differ, min(len(self._prefix), len(shape)))]
    for at in _ELSEWHERE:
      if self._sizes[at] != _size(shape, at):
        self._sizes[at] = None

  def leading(self) -> int:
    """Number of stacked axes in front."""
    return max(0, min(self._spare, len(self._prefix))) if self._tells else 0

  def elsewhere(self) -> tuple[int, ...]:
    """Position of a stacked axis that is not in front."""
    if self._tells_elsewhere and self._spare > 0:
      for at, size in self._sizes.items():
        if size is not None:
          return (at,)
    return ()


def _modules(path: str) -> Iterator[str]:
  """The modules around a leaf, the whole tree (``""``) first."""
  yield ""
  for at, letter in enumerate(path):
    if letter == "/":
      yield path[:at]


def _size(shape: tuple[int, ...], at: int) -> int | None:
  return shape[at] if -len(shape) <= at < len(shape) else None


def _counts_neurons(path: str, shape: tuple[int, ...], leaves: tree.Leaves) -> bool:
  """Whether a bias of several axes may just count the neurons of ``DenseGeneral``.

  Its kernel ``(in, heads, size)`` has the bias ``(heads, size)``, which looks like a
  stack on the last axis, or on the one before where both sizes are equal.
  """
  module, _, name = path.rpartition("/")
  weight = _WEIGHT_BESIDE.get(name)
  other = f"{module}/{weight}" if module else weight
  return other in leaves and shape == tuple(leaves[other].shape)[-len(shape) :]
