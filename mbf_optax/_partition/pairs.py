"""Weights and their biases by their shapes, where their names are not known.

A matrix with a vector of its last axis beside it, in the same dictionary, tuple or
list, is a dense layer whatever the two are called. Where several stand together, names
that differ in the word for a weight and a bias alone belong together (``W1`` and
``b1``), and so do neighbours in a list; a single matrix and a single vector do anyhow.
A stack of matrices goes with a stack of vectors in the same way.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mbf_optax._partition import names


class Entry(NamedTuple):
  """An array of a module.

  Attributes:
    name: its key.
    path: its path.
    shape: its shape.
  """

  name: str
  path: str
  shape: tuple[int, ...]


def pairs_of(entries: Sequence[Entry]) -> dict[str, str]:
  """Paths of biases by the paths of their weights, among the arrays of one module."""
  weights = [entry for entry in entries if _is_weight(entry.shape)]
  biases = [
    entry
    for entry in entries
    if len(entry.shape) in (1, 2) and not names.says_scale(entry.name)
  ]
  if len(weights) == 1:
    return _only_pair(weights[0], biases)
  by_stem: dict[_Stem, Entry] = {}
  for bias in biases:
    for stem in _stems_of_bias(bias.name):
      by_stem.setdefault(stem, bias)
  found: dict[str, str] = {}
  taken: set[str] = set()
  for weight in weights:
    for stem in _stems_of_weight(weight.name):
      named = by_stem.get(stem)
      if named and named.path not in taken and _is_bias(named, weight):
        found[weight.path] = named.path
        taken.add(named.path)
        break
  return found


def _only_pair(weight: Entry, biases: Sequence[Entry]) -> dict[str, str]:
  fitting = [bias for bias in biases if fits(weight.shape, _as_vector(bias.shape))]
  if len(fitting) != 1 or names.says_elementwise(weight.name):
    return {}
  (bias,) = fitting
  return {weight.path: bias.path} if _is_bias(bias, weight) else {}


def _is_bias(bias: Entry, weight: Entry) -> bool:
  """Whether one array fits the other; a row counts columns alone.

  The two halves of an adapter of rank one, ``(n, 1)`` and ``(1, n)``, do not.
  """
  shape = _as_vector(bias.shape)
  is_row = shape != bias.shape
  return fits(weight.shape, shape) and (not is_row or shape[-1] == weight.shape[-1])


def fits(weight: tuple[int, ...], bias: tuple[int, ...]) -> bool:
  """Whether a bias counts the outputs of a dense layer, a stack of it or a kernel."""
  if len(weight) == 4:
    return is_kernel(weight) and bias in (weight[-1:], weight[:1])
  if len(weight) - 1 != len(bias) or weight[: len(bias) - 1] != bias[:-1]:
    return False
  return bias[-1] in weight[-2:]


def is_kernel(shape: tuple[int, ...]) -> bool:
  """Whether an array of rank 4 has two equal, small axes of offsets at one end."""
  front, back = shape[:2], shape[2:]
  return any(a == b and 1 < a <= 15 for a, b in (front, back))


def _is_weight(shape: tuple[int, ...]) -> bool:
  return len(shape) in (3, 4) or (len(shape) == 2 and shape[0] != 1)


def _as_vector(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of a bias; ``(1, n)`` is one of ``n`` outputs."""
  return shape[1:] if len(shape) == 2 and shape[0] == 1 else shape


_Stem = tuple[str, ...]


def _stems_of_bias(name: str) -> Iterable[_Stem]:
  """What connects a bias with its weight; in a list, its place does."""
  if names.is_index(name):
    return [("", name)]
  return names.stems(name) if names.says_bias(name) else ()


def _stems_of_weight(name: str) -> Iterable[_Stem]:
  """The same of a weight; in a list its bias is the next element."""
  if names.is_index(name):
    return [("", str(int(name) + 1))]
  return names.stems(name)
