"""Which axes of Equinox's arrays are what, by shapes that are written down by hand."""

import pytest

from mbf_optax._partition.channels_first import ChannelsFirst, channels_first_geometry
from mbf_optax._partition.conventions import Geometry
from mbf_optax._partition.parameters import Parameters
from tests._partition.shapes import array

CONVENTION = ChannelsFirst()


def parameters(module, weight, bias=None, name="weight"):
  leaves = {f"{module}/{name}": array(*weight)}
  if bias is not None:
    leaves[f"{module}/bias"] = array(*bias)
  return Parameters(leaves, CONVENTION.reads)


def geometry(module, weight, bias=None, kind=None, stack=None):
  """Axes of a weight, whose tree says which of them are stacked or is asked."""
  params = parameters(module, weight, bias)
  if stack is not None:
    params.stack_axes = lambda path: stack
  return CONVENTION.geometry(f"{module}/weight", params, kind)


def test_axes_are_stacks_outputs_inputs_and_offsets():
  assert channels_first_geometry(5, 1, True) == Geometry((0,), (3, 4), (2,), (0, 1))
  assert channels_first_geometry(4, 2, False) == Geometry((0, 1), (), (3,), (0, 1, 2))
  assert channels_first_geometry(4, 0, False) == Geometry((), (), (1, 2, 3), (0,))
  assert channels_first_geometry(3, 0, True) == Geometry((), (2,), (1,), (0,))


@pytest.mark.parametrize(
  ("module", "weight", "bias", "expected"),
  [
    ("linear", (5, 4), (5,), Geometry((), (), (1,), (0,))),
    ("linear", (5, 5), (5,), Geometry((), (), (1,), (0,))),
    ("linear", (7, 5, 4), (7, 5), Geometry((0,), (), (2,), (0, 1))),
    ("head", (7, 6, 5, 4), (7, 6, 5), Geometry((0, 1), (), (3,), (0, 1, 2))),
    ("conv", (5, 4, 3), (5, 1), Geometry((), (2,), (1,), (0,))),
    ("head", (5, 4, 12, 8), (5, 1, 1), Geometry((), (2, 3), (1,), (0,))),
    ("head", (7, 5, 4, 3, 3), (7, 5, 1, 1), Geometry((0,), (3, 4), (2,), (0, 1))),
  ],
)
def test_a_bias_tells_stacks_from_offsets(module, weight, bias, expected):
  assert geometry(module, weight, bias) == expected


@pytest.mark.parametrize(
  ("module", "weight", "expected"),
  [
    ("head", (5, 4), Geometry((), (), (1,), (0,))),
    ("conv", (5, 4, 3), Geometry((), (2,), (1,), (0,))),
    ("head", (5, 4, 3), Geometry((0,), (), (2,), (0, 1))),  # or a convolution
    ("head", (5, 4, 3, 3), Geometry((), (2, 3), (1,), (0,))),
    ("head", (5, 4, 12, 8), Geometry((0, 1), (), (3,), (0, 1, 2))),
    ("linear", (5, 4, 3, 3), Geometry((0, 1), (), (3,), (0, 1, 2))),
  ],
)
def test_without_a_bias_the_name_tells_or_the_shape(module, weight, expected):
  assert geometry(module, weight) == expected


def test_a_bias_of_the_last_axis_alone_makes_inputs_the_others():
  assert geometry("head", (4, 5), (5,)) == Geometry((), (), (0,), (1,))
  offsets_first = geometry("head", (3, 3, 4, 5), (5,))
  assert offsets_first == Geometry((), (0, 1), (2,), (3,))
  dense = geometry("head", (3, 3, 4, 5), (5,), kind="dense")
  assert dense == Geometry((), (), (0, 1, 2), (3,))


def test_a_kind_that_is_asked_for_is_taken():
  assert geometry("head", (5, 4, 3), kind="conv") == Geometry((), (2,), (1,), (0,))
  assert geometry("conv", (5, 4, 3), kind="dense") == Geometry((), (), (1, 2), (0,))
  stacked = geometry("conv", (7, 5, 4, 3), (7, 5, 1), kind="dense")
  assert stacked == Geometry((0,), (), (2, 3), (0, 1))


def excludes(module, weight, bias=None, name="weight"):
  params = parameters(module, weight, bias, name)
  return CONVENTION.excludes(f"{module}/{name}", params)


def test_norms_and_embeddings_are_excluded_by_their_biases_or_names():
  assert excludes("first", (4,), (4,))
  assert excludes("first", (4, 4), (4, 4))  # a LayerNorm of two axes
  assert excludes("norm", (4,))
  assert excludes("rms_norm", (7, 4))
  assert excludes("embedding", (9, 4))
  assert not excludes("embedding", (9, 4, 3, 3))  # a patch embedding
  assert not excludes("embedding", (9, 4), (9,))
  assert not excludes("norm", (9, 4), (9,))
  assert not excludes("cell", (9, 4), (9,), name="weight_hh")


@pytest.mark.parametrize(
  ("module", "weight", "stack", "expected"),
  [
    ("head", (5, 4), (0,), Geometry((), (), (1,), (0,))),  # too few axes for it
    ("head", (7, 5, 4, 3), (0,), Geometry((0,), (3,), (2,), (0, 1))),
    ("head", (5, 4, 3, 3), (), Geometry((), (2, 3), (1,), (0,))),
    ("linear", (5, 4, 3, 3), (), Geometry((0, 1), (), (3,), (0, 1, 2))),
  ],
)
def test_what_the_tree_says_of_stacks_is_heard(module, weight, stack, expected):
  assert geometry(module, weight, stack=stack) == expected


def test_weights_of_recurrent_cells_are_known():
  for name in ("weight", "weight_ih", "weight_hh"):
    params = parameters("cell", (9, 4), (9,), name)
    assert CONVENTION.reads(f"cell/{name}", params)
    assert not CONVENTION.reads("cell/bias", params)
