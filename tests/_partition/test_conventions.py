"""Names of weights and biases beside each other, and shapes of kernels."""

import pytest

from mbf_optax._partition.conventions import Named, is_plausible_kernel, unstacked
from mbf_optax._partition.parameters import Parameters
from tests._partition.shapes import array

CONVENTION = Named(("w", "w_i", "w_h"), "b")


def parameters(**leaves):
  return Parameters(leaves, CONVENTION.reads)


def test_weights_are_known_by_the_last_part_of_their_path():
  params = parameters()
  for path in ("w", "a/w", "a/b/w_i", "w_h"):
    assert CONVENTION.reads(path, params)
  for path in ("b", "w/a", "a/kernel", "a/ww", ""):
    assert not CONVENTION.reads(path, params)


def test_a_bias_stands_beside_the_first_of_the_weights_of_its_module():
  leaves = {"x/w": array(3, 2), "x/b": array(2), "x/w_h": array(2, 2)}
  params = parameters(**leaves, **{"x/y/w": array(2, 2), "w": array(2, 2)})
  assert CONVENTION.bias_of("x/w", params) == "x/b"
  assert CONVENTION.weight_of("x/b", params) == "x/w"
  assert CONVENTION.bias_of("x/w_h", params) is None
  assert CONVENTION.bias_of("x/y/w", params) is None
  assert CONVENTION.bias_of("w", params) is None
  assert CONVENTION.weight_of("x/w", params) is None
  assert CONVENTION.weight_of("x/y/b", parameters(**leaves)) is None


def test_a_tree_without_modules_has_its_bias_at_the_top():
  params = parameters(w=array(3, 2), b=array(2))
  assert CONVENTION.bias_of("w", params) == "b"
  assert CONVENTION.weight_of("b", params) == "w"


def test_a_bias_is_unstacked(monkeypatch):
  params = parameters(b=array(7, 2, 5, 3))
  monkeypatch.setattr(params, "stack_axes", {"b": (0, 2)}.get)
  assert unstacked("b", params) == (2, 3)
  assert unstacked(None, params) == ()


@pytest.mark.parametrize(
  ("spatial", "is_plausible"),
  [
    ((3, 3), True),
    ((4, 4, 4), True),
    ((14, 14), True),
    ((1, 7), True),
    ((11,), True),
    ((13,), False),
    ((4,), False),
    ((12, 8), False),
    ((3, 4), False),
    ((11, 13), False),
    ((5, 5, 7), True),  # 175 offsets
    ((5, 7, 7), False),  # 245
  ],
)
def test_kernels_are_square_or_small_and_odd(spatial, is_plausible):
  assert is_plausible_kernel(spatial) == is_plausible
