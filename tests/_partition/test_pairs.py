"""Which vector of a module is the bias of which matrix."""

import pytest

from mbf_optax._partition.pairs import Entry, fits, is_kernel, pairs_of


def pairs(**shapes):
  return pairs_of([Entry(name, f"m/{name}", shape) for name, shape in shapes.items()])


def test_a_bias_counts_either_axis_of_a_matrix_and_has_its_stack():
  assert fits((4, 8), (8,))
  assert fits((4, 8), (4,))
  assert not fits((4, 8), (6,))
  assert not fits((4, 8), (4, 8))
  assert fits((5, 4, 8), (5, 8))
  assert not fits((5, 4, 8), (6, 8))
  assert not fits((5, 4, 8), (5, 5))


def test_a_bias_counts_the_outputs_of_a_kernel():
  assert fits((3, 3, 4, 8), (8,))
  assert fits((8, 4, 3, 3), (8,))
  assert not fits((3, 3, 4, 8), (4,))
  assert not fits((3, 5, 4, 8), (8,))


@pytest.mark.parametrize(("size", "expected"), [(1, False), (2, True), (15, True)])
def test_offsets_of_a_kernel_are_few(size, expected):
  assert is_kernel((size, size, 4, 8)) is is_kernel((8, 4, size, size)) is expected
  assert not is_kernel((16, 16, 4, 8))


def test_a_lone_matrix_takes_the_only_vector_that_fits_it():
  assert pairs(a=(4, 8), c=(8,), d=(7,)) == {"m/a": "m/c"}
  assert pairs(a=(4, 8), c=(1, 8)) == {"m/a": "m/c"}
  assert pairs(a=(4, 8), c=(8,), d=(4,)) == {}
  assert pairs(a=(4, 8), gain=(8,)) == {}
  assert pairs(embedding=(4, 8), c=(8,)) == {}
  assert pairs(row=(1, 8), c=(8,)) == {}


def test_what_is_no_dense_layer_though_it_fits():
  assert pairs(A_log=(64, 16), D=(64,)) == {}  # of a state-space layer
  assert pairs(lora_a=(64, 1), lora_b=(1, 64)) == {}
  assert pairs(lora_a=(1, 64), lora_b=(64, 1)) == {}
  assert pairs(w=(64, 1), b=(1, 1)) == {"m/w": "m/b"}


def test_several_matrices_take_what_their_names_share():
  shapes = {"W1": (4, 4), "b2": (4,), "W2": (4, 4), "b1": (4,), "c": (4,)}
  assert pairs(**shapes) == {"m/W1": "m/b1", "m/W2": "m/b2"}
  assert pairs(W1=(4, 8), b1=(7,), W2=(8, 4), b2=(4,)) == {"m/W2": "m/b2"}
  assert pairs(w1=(4, 4), kernel1=(4, 4), b1=(4,)) == {"m/w1": "m/b1"}


def test_in_a_list_the_bias_is_the_next():
  shapes = {"0": (4, 4), "1": (4,), "2": (4, 4), "3": (4,)}
  assert pairs(**shapes) == {"m/0": "m/1", "m/2": "m/3"}
