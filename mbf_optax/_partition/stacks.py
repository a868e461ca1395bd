"""Which axes of the arrays stack independent layers (scans, vmaps, ensembles).

A scan or a vmap gives every array of a module one more axis, at the same position and
of the same size. Whether a module is such a stack is therefore asked of all arrays
below it: each must have an axis more than its kind needs, with one size for all, and
one of them must tell that this is no accident. A lone kernel of rank 3 could as well
be a convolution; a bias or a norm's scale of rank 2, or a kernel of rank 3 in a module
named like a dense layer, can only be stacked. Linen's names for lifted modules
(``ScanBlock_0``) tell too. Where a bias stands beside its kernel, what is left of both
without the stacked axis must fit.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mbf_optax._partition import names
from mbf_optax._tree import paths

_WEIGHTS = ("kernel", "w", "w_i", "w_h", "weight", "weight_ih", "weight_hh")
_EMBEDDINGS = ("embedding", "embeddings")
_VECTORS = ("bias", "b", "scale", "offset")
_LIFTED_NAME = re.compile(r"(Scan|Vmap)[A-Z]")
# Where a stack that is not in front may be: Flax's ``variable_axes={"params": 1}``
# inserts its axis at position 1 of every array, a negative one counts from the end.
_ELSEWHERE = (1, -1, -2)


class _Evidence(NamedTuple):
  """What one array says.

  Attributes:
    shape: its shape.
    spare: number of its axes that could be stacked.
    tells: whether such an axis can only be stacked.
    tells_elsewhere: the same of a stack that is not in front.
    fitting: positions at which a stack would leave weight and bias that fit.
  """

  shape: tuple[int, ...]
  spare: int
  tells: bool
  tells_elsewhere: bool
  fitting: tuple[int, ...]

  @classmethod
  def of(cls, path: str, leaves: paths.Leaves) -> "_Evidence":
    """The evidence of the array at ``path``."""
    module, slash, name = path.rpartition("/")
    shape, key = tuple(leaves[path].shape), module.rpartition("/")[2]
    vector = name in _VECTORS or (name in _WEIGHTS and names.says_norm(key))
    if vector:
      weight = _weight_beside(f"{module}{slash}", name, leaves)
      ones = 0
      if weight is None:
        return cls(shape, len(shape) - 1, True, True, (0, *_ELSEWHERE))
      if name == "bias" and weight[1]:  # Equinox: ``(out, 1, 1)``
        ones = len(shape) - len(_without_ones(shape))
      fitting = _fitting(weight[0], shape, weight[1])
      counts_neurons = shape == weight[0][-len(shape) :]
      return cls(shape, len(shape) - 1 - ones, True, not counts_neurons, fitting)
    least = 2 if name in _WEIGHTS + _EMBEDDINGS else 0
    tells = name in _EMBEDDINGS or (name in _WEIGHTS and names.says_dense(key))
    return cls(shape, len(shape) - least, tells, tells, (0, *_ELSEWHERE))


class Stacks:
  """The stacked axes of every array of a tree, found in one pass over its leaves."""

  def __init__(self, leaves: paths.Leaves) -> None:
    self._modules: dict[str, _Module] = {}
    self._positions: dict[str, tuple[int, ...]] = {}
    for path in leaves:
      evidence = _Evidence.of(path, leaves)
      for module in _modules(path):
        if module not in self._modules:
          self._modules[module] = _Module(module, evidence.shape)
        self._modules[module].add(evidence)

  def positions(self, path: str) -> tuple[int, ...]:
    """Positions of the stacked axes in the array at ``path``; negative from the end.

    The same positions hold for every array of the stacked module.
    """
    around = path.rpartition("/")[0]
    if around not in self._positions:
      self._positions[around] = self._find(path)
    return self._positions[around]

  def _find(self, path: str) -> tuple[int, ...]:
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
    self._fitting = {0, *_ELSEWHERE}

  def add(self, evidence: _Evidence) -> None:
    """One more array."""
    shape = evidence.shape
    self._tells |= evidence.tells
    self._tells_elsewhere |= evidence.tells_elsewhere
    self._spare = min(self._spare, evidence.spare)
    if self._spare <= 0:
      return  # no stack, whatever else is there
    self._fitting.intersection_update(evidence.fitting)
    if self._prefix != shape:
      self._prefix = _common(self._prefix, shape)
    for at, size in self._sizes.items():
      if size is not None and size != _size(shape, at):
        self._sizes[at] = None

  def leading(self) -> int:
    """Number of stacked axes in front."""
    if not self._tells or 0 not in self._fitting:
      return 0
    return max(0, min(self._spare, len(self._prefix)))

  def elsewhere(self) -> tuple[int, ...]:
    """Position of a stacked axis that is not in front."""
    if self._tells_elsewhere and self._spare > 0:
      for at, size in self._sizes.items():
        if size is not None and at in self._fitting:
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


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
  """The sizes in front that two shapes have in common."""
  for axis, (left, right) in enumerate(zip(a, b, strict=False)):
    if left != right:
      return a[:axis]
  return a[: len(b)]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape without the ones at its end."""
  while shape[-1:] == (1,):
    shape = shape[:-1]
  return shape


def _weight_beside(
  module: str, name: str, leaves: paths.Leaves
) -> tuple[tuple[int, ...], bool] | None:
  """Shape of the weight of a bias, and whether its outputs come first."""
  known = {"bias": ("kernel", "weight"), "b": ("w",)}.get(name, ())
  for weight in known:
    if module + weight in leaves:
      return tuple(leaves[module + weight].shape), weight == "weight"
  return None


def _fitting(
  weight: tuple[int, ...], bias: tuple[int, ...], outputs_first: bool
) -> tuple[int, ...]:
  """Positions of a stack without which a bias counts the outputs of a weight."""
  if outputs_first:
    return (0,) if weight[:1] == bias[:1] else ()
  found = []
  for at in (0, *_ELSEWHERE):
    left, right = _removed(weight, at), _removed(bias, at)
    if left and right is not None and left[len(left) - len(right) :] == right:
      found.append(at)
  return tuple(found)


def _removed(shape: tuple[int, ...], at: int) -> tuple[int, ...] | None:
  if not -len(shape) <= at < len(shape):
    return None
  at %= len(shape)
  return shape[:at] + shape[at + 1 :]
