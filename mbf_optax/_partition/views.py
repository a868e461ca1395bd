"""Which axes of a parameter the axes of a value are, through every change of layout.

A value that is a parameter up to its layout (transposed, reshaped, sliced, scaled, one
of several that were concatenated) has a :class:`View` of it. So has the output of a
product, of the array that it was multiplied with: a bias is found by it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]

NEW = -1
"""Stands for the axis of an atom that no axis of the parameter is behind."""
UNKNOWN = -1
"""Stands for the start of a slice whose start is computed."""


class Atom(NamedTuple):
  """A parameter's axis, or the factor of it that a reshape has split off.

  Attributes:
    axis: the axis of the parameter, or ``NEW``.
    size: number of elements that are left of it.
    start: where they start, once it is sliced.
    cut: whether it was sliced down to one element.
    stride: how many elements along the axis one step is.
  """

  axis: int
  size: int
  start: int = 0
  cut: bool = False
  stride: int = 1


class Span(NamedTuple):
  """Along one axis of a value: the atoms that it is made of, slowest first.

  A view is a part of a value where several were concatenated; ``offset`` says where.
  """

  atoms: tuple[Atom, ...] = ()
  offset: int = 0

  @property
  def size(self) -> int:
    return math.prod(atom.size for atom in self.atoms)

  @property
  def real(self) -> tuple[Atom, ...]:
    """The atoms of the parameter."""
    return tuple(atom for atom in self.atoms if atom.axis != NEW)


class View(NamedTuple):
  """A parameter's axes behind those of a value.

  Attributes:
    path: the parameter.
    axes: for every axis of the value, the parameter's axes behind it.
    stacked: what was indexed or scanned away, outermost first.
    step: the equation that made it, where it is the output of a product.
    events: uses that hold unless the value turns out to be a weight after all.
  """

  path: str
  axes: tuple[Span, ...]
  stacked: tuple[Atom, ...] = ()
  step: int = 0
  events: tuple[int, ...] = ()

  @property
  def one_to_one(self) -> bool:
    """Whether no axis was added over which the parameter is repeated."""
    return all(
      atom.axis != NEW or atom.size == 1 for span in self.axes for atom in span.atoms
    )


Change = Callable[[View], View | None]
"""A change of layout; ``None`` where the view cannot follow it."""


def of_parameter(path: str, shape: Shape) -> View:
  """The parameter itself."""
  return View(path, tuple(Span((Atom(i, size),)) for i, size in enumerate(shape)))


def fresh(size: int) -> Span:
  """An axis with nothing of the parameter behind it."""
  return Span(() if size == 1 else (Atom(NEW, size),))


def _leave(view: View, atoms: Sequence[Atom]) -> View:
  """The view once axes are gone: what indices were taken of stacks layers."""
  gone = tuple(atom for atom in atoms if atom.axis != NEW and atom.cut)
  return view._replace(stacked=view.stacked + gone)


def transpose(view: View, permutation: Sequence[int]) -> View:
  """Axes in another order."""
  return view._replace(axes=tuple(view.axes[axis] for axis in permutation))


def squeeze(view: View, dimensions: Sequence[int]) -> View:
  """Without axes of size one; what they index of the parameter stacks layers."""
  for axis in dimensions:
    view = _leave(view, view.axes[axis].atoms)
  kept = (span for i, span in enumerate(view.axes) if i not in dimensions)
  return view._replace(axes=tuple(kept))


def take_leading(view: View) -> View:
  """One entry of the leading axis, which thereby stacks independent layers."""
  first, *rest = view.axes
  return view._replace(axes=tuple(rest), stacked=view.stacked + first.real)


def broadcast(
  view: View, old: Shape, new: Shape, dimensions: Sequence[int]
) -> View | None:
  """Old axes at the given places among new ones; those that are repeated are gone."""
  axes = [fresh(size) for size in new]
  for axis, target in enumerate(dimensions):
    if old[axis] == new[target]:
      axes[target] = view.axes[axis]
    else:
      view = _leave(view, view.axes[axis].atoms)
  return view._replace(axes=tuple(axes))


def reshape(view: View, old: Shape, new: Shape) -> View | None:
  """Axes split and merged, as far as they stay products of the parameter's axes."""
  axes = [fresh(size) for size in new]
  ones = [[i for i, size in enumerate(shape) if size == 1] for shape in (old, new)]
  if len(ones[0]) == len(ones[1]):
    for before, after in zip(*ones, strict=True):
      axes[after] = view.axes[before]
  else:
    for axis in ones[0]:
      view = _leave(view, view.axes[axis].atoms)
  for before, after in _groups(old, new):
    if len(before) == len(after) == 1:
      axes[after[0]] = view.axes[before[0]]
      continue
    spans = [view.axes[axis] for axis in before]
    if any(span.size != old[axis] for span, axis in zip(spans, before, strict=True)):
      return None
    atoms = [atom for span in spans for atom in span.atoms]
    view = _leave(view, [atom for atom in atoms if atom.size == 1])
    divided = _divide(
      [atom for atom in atoms if atom.size != 1], [new[i] for i in after]
    )
    if divided is None:
      return None
    for axis, part in zip(after, divided, strict=True):
      axes[axis] = Span(_merged(part))
  return view._replace(axes=tuple(axes))


def _groups(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
  """The smallest runs of axes, of more than one element, whose products agree."""
  left = [axis for axis, size in enumerate(old) if size != 1]
  right = [axis for axis, size in enumerate(new) if size != 1]
  while left:
    before, after = [left.pop(0)], [right.pop(0)]
    while (have := math.prod(old[i] for i in before)) != (
      want := math.prod(new[i] for i in after)
    ):
      if have < want:
        before.append(left.pop(0))
      else:
        after.append(right.pop(0))
    yield before, after


def _divide(atoms: list[Atom], sizes: Sequence[int]) -> list[list[Atom]] | None:
  """The atoms in consecutive groups of the given sizes, split where it takes that."""
  groups, atoms = [], list(atoms)
  for size in sizes:
    group: list[Atom] = []
    while (need := size // math.prod(atom.size for atom in group)) > 1:
      atom = atoms.pop(0)
      if need % atom.size and atom.size % need:
        return None
      if atom.size > need:
        rest = atom.size // need
        atoms.insert(0, atom._replace(size=rest, start=0))
        atom = atom._replace(size=need, stride=atom.stride * rest)
      group.append(atom)
    if math.prod(atom.size for atom in group) != size:
      return None
    groups.append(group)
  return groups


def _merged(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
  """The atoms, with the factors of an axis multiplied where they are in its order."""
  merged: list[Atom] = []
  for atom in atoms:
    following = (atom.axis, atom.start, atom.stride * atom.size)
    if merged and (merged[-1].axis, merged[-1].start, merged[-1].stride) == following:
      atom = atom._replace(size=merged.pop().size * atom.size)
    merged.append(atom)
  return tuple(merged)


def cut(view: View, axis: int, start: int, size: int) -> View | None:
  """A slice of one axis; ``start`` may be ``UNKNOWN``."""
  span = view.axes[axis]
  kept: Span | None
  if not span.real:
    kept = fresh(size)
  elif start == UNKNOWN:
    kept = _cut_atoms(span, UNKNOWN, size)
  else:
    first = max(span.offset, start)
    last = min(span.offset + span.size, start + size)
    if first >= last:
      return None
    offset = first - start
    if last - first == span.size:
      kept = span._replace(offset=offset)
    else:
      kept = _cut_atoms(span, first - span.offset, last - first)
      kept = kept and kept._replace(offset=offset)
  if kept is None:
    return None
  return view._replace(axes=(*view.axes[:axis], kept, *view.axes[axis + 1 :]))


def _cut_atoms(span: Span, start: int, size: int) -> Span | None:
  """A part of a span: whole entries of its slowest atom."""
  first, *rest = [atom for atom in span.atoms if atom.size != 1] or span.atoms
  inner = math.prod(atom.size for atom in rest)
  if size % inner or (start != UNKNOWN and start % inner):
    return None
  entries = size // inner
  begin = UNKNOWN
  if start != UNKNOWN and first.start != UNKNOWN:
    begin = first.start + start // inner
  is_cut = first.cut or (entries == 1 and first.size > 1)
  return Span((first._replace(size=entries, start=begin, cut=is_cut), *rest))


def slices(
  view: View,
  shape: Shape,
  starts: Sequence[int],
  sizes: Sequence[int],
) -> View | None:
  """Slices of all axes; whole axes stay as they are."""
  current: View | None = view
  for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
    if current is not None and size != shape[axis]:
      current = cut(current, axis, start, size)
  return current


def shift(view: View, axis: int, offset: int) -> View:
  """The view as a part of a longer axis, as in a concatenation."""
  span = view.axes[axis]
  span = span._replace(offset=span.offset + offset)
  return view._replace(axes=(*view.axes[:axis], span, *view.axes[axis + 1 :]))


def shared_axes(output: View, bias: View) -> dict[int, int] | None:
  """The axes of a weight that those of its bias are, by the bias's axes.

  Args:
    output: the weight's view of the product's value.
    bias: the view of what is added to it.

  Returns:
    ``None`` unless the bias has one element for every output: all of the output's
    axes, each axis of the bias one of the weight, broadcast over the rest.
  """
  sides = [(output.stacked, bias.stacked)]
  for ours, theirs in zip(output.axes, bias.axes, strict=True):
    left, right = _many(ours), _many(theirs)
    if left and right and ours.offset != theirs.offset:
      return None
    sides.append((left, right))
  found: dict[int, int] = {}
  for left, right in sides:
    if [atom[1:] for atom in left] != [atom[1:] for atom in right]:
      return None
    for of_weight, of_bias in zip(left, right, strict=True):
      if found.setdefault(of_bias.axis, of_weight.axis) != of_weight.axis:
        return None
  return found if len(set(found.values())) == len(found) else None


def _many(span: Span) -> tuple[Atom, ...]:
  """The parameter's atoms of more than one element."""
  return tuple(atom for atom in span.real if atom.size != 1)
