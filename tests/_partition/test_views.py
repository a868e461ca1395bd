"""Which axes of a parameter are behind those of a value, by hand."""

import pytest

from mbf_optax._partition import views
from mbf_optax._partition.views import NEW, UNKNOWN, Atom, Span, View, of_parameter

W = of_parameter("w", (4, 6))


def axes(view):
  """The axes of the parameter behind every axis, with their sizes."""
  return [[(atom.axis, atom.size) for atom in span.atoms] for span in view.axes]


def test_axes_moved_repeated_and_taken_away():
  assert axes(views.transpose(W, (1, 0))) == [[(1, 6)], [(0, 4)]]
  repeated = views.broadcast(W, (4, 6), (4, 3, 6), (0, 2))
  assert axes(repeated) == [[(0, 4)], [(NEW, 3)], [(1, 6)]]
  assert W.one_to_one
  assert not repeated.one_to_one
  assert views.broadcast(W, (4, 6), (4, 1, 6), (0, 2)).one_to_one
  assert repeated.axes[1].real == ()
  assert views.cut(repeated, 1, 0, 1).axes[1] == Span()
  row = views.broadcast(of_parameter("w", (1, 6)), (1, 6), (4, 6), (0, 1))
  assert axes(row) == [[(NEW, 4)], [(1, 6)]]
  assert views.take_leading(row).stacked == ()
  taken = views.take_leading(W)
  assert (axes(taken), taken.stacked) == ([[(1, 6)]], (Atom(0, 4),))
  assert views.take_leading(taken).stacked == (Atom(0, 4), Atom(1, 6))


def test_an_index_leaves_an_axis_of_the_parameter_stacked():
  one = views.cut(W, 0, 2, 1)
  assert one.axes[0] == Span((Atom(0, 1, start=2, cut=True),))
  gone = views.squeeze(one, (0,))
  assert (axes(gone), gone.stacked) == ([[(1, 6)]], one.axes[0].atoms)
  lone = views.squeeze(of_parameter("w", (1, 6)), (0,))
  assert (axes(lone), lone.stacked) == ([[(1, 6)]], ())
  flat = views.reshape(one, (1, 6), (6,))
  assert (axes(flat), flat.stacked) == ([[(1, 6)]], one.axes[0].atoms)
  both = views.squeeze(views.cut(one, 1, UNKNOWN, 1), (0, 1))
  assert [atom.axis for atom in both.stacked] == [0, 1]
  assert views.cut(one, 0, UNKNOWN, 1).axes[0].atoms[0].cut
  assert not views.cut(of_parameter("w", (1, 6)), 0, UNKNOWN, 1).axes[0].atoms[0].cut
  three = views.broadcast(W, (4, 6), (3, 4, 6), (1, 2))
  second = views.cut(views.reshape(three, (3, 4, 6), (12, 6)), 0, 4, 4)
  assert views.reshape(second, (4, 6), (24,)).stacked == ()


def test_axes_split_and_merged():
  split = views.reshape(W, (4, 6), (4, 2, 3))
  assert split.axes[1:] == (Span((Atom(1, 2, stride=3),)), Span((Atom(1, 3),)))
  assert views.reshape(split, (4, 2, 3), (4, 6)) == W
  flat = views.reshape(W, (4, 6), (24,))
  assert axes(flat) == [[(0, 4), (1, 6)]]
  assert views.reshape(flat, (24,), (4, 1, 6)).axes == (
    W.axes[0],
    Span(),
    W.axes[1],
  )
  across = views.reshape(W, (4, 6), (2, 12))
  assert axes(across) == [[(0, 2)], [(0, 2), (1, 6)]]
  assert views.reshape(W, (4, 6), (3, 8)) is None
  assert views.reshape(W, (4, 12), (48,)) is None  # as a part of a concatenation
  lone = of_parameter("w", (1, 24))
  assert axes(views.reshape(lone, (1, 24), (1, 4, 6)))[0] == [(0, 1)]
  assert axes(views.reshape(lone, (1, 24), (1, 1, 24))) == [[], [], [(1, 24)]]
  turned = views.reshape(views.transpose(split, (0, 2, 1)), (4, 3, 2), (4, 6))
  assert axes(turned) == [[(0, 4)], [(1, 3), (1, 2)]]


@pytest.mark.parametrize(
  ("start", "size", "atom", "offset"),
  [
    (0, 6, Atom(1, 6), 0),
    (2, 3, Atom(1, 3, start=2), 0),
    (UNKNOWN, 3, Atom(1, 3, start=UNKNOWN), 0),
    (5, 1, Atom(1, 1, start=5, cut=True), 0),
  ],
)
def test_slices_of_an_axis(start, size, atom, offset):
  assert views.slices(W, (4, 6), (0, start), (4, size)).axes == (
    W.axes[0],
    Span((atom,), offset),
  )


def test_slices_of_a_part_of_a_concatenation():
  """The part lies at 10 to 15."""
  part = views.shift(W, 1, 10)
  assert part.axes[1] == Span((Atom(1, 6),), 10)
  assert views.shift(part, 1, 5).axes[1].offset == 15
  assert views.cut(part, 1, 0, 10) is None
  assert views.cut(part, 1, 16, 4) is None
  assert views.cut(part, 1, 8, 9).axes[1] == Span((Atom(1, 6),), 2)
  assert views.cut(part, 1, 8, 4).axes[1] == Span((Atom(1, 2),), 2)
  assert views.cut(part, 1, 13, 9).axes[1] == Span((Atom(1, 3, start=3),), 0)


def test_slices_of_merged_axes_are_whole_entries_of_the_slowest():
  flat = views.reshape(W, (4, 6), (24,))
  assert views.cut(flat, 0, 6, 12).axes == (Span((Atom(0, 2, start=1), Atom(1, 6))),)
  again = views.cut(views.cut(W, 0, 1, 3), 0, 1, 2)
  assert again.axes[0] == Span((Atom(0, 2, start=2),))
  assert views.cut(flat, 0, 3, 12) is None
  assert views.cut(flat, 0, 6, 8) is None


def test_the_axes_of_a_bias():
  """Those of the output of a product of a stack of five weights."""
  output = View("w", (Span(), Span((Atom(2, 6),))), stacked=(Atom(0, 5),))
  bias = View("b", (Span(), Span((Atom(1, 6),))), stacked=(Atom(0, 5),))
  assert views.shared_axes(output, bias) == {0: 0, 1: 2}
  assert views.shared_axes(output, bias._replace(stacked=())) is None
  rows = bias._replace(axes=(Span((Atom(2, 3),)), bias.axes[1]))
  assert views.shared_axes(output, rows) is None
  apart = bias._replace(axes=(Span(), Span((Atom(1, 6),), offset=6)))
  assert views.shared_axes(output, apart) is None
  tied = bias._replace(axes=(Span(), Span((Atom(0, 6),))))
  assert views.shared_axes(output, tied) is None
  fewer = bias._replace(axes=(Span(), Span((Atom(1, 3),))))
  assert views.shared_axes(output, fewer) is None
  single = bias._replace(axes=(Span((Atom(2, 1),)), bias.axes[1]))
  assert views.shared_axes(output, single) == {0: 0, 1: 2}
  square = View("w", (Span((Atom(0, 5),)), Span((Atom(0, 5),))))
  assert views.shared_axes(square, of_parameter("b", (5, 5))) is None
