"""Which axes stack layers: what arrays of one module say together."""

import pytest

from mbf_optax._partition.stacks import Stacks
from tests._partition.shapes import array


def stacked(**shapes):
  """Positions by path; ``__`` stands for a slash."""
  paths = {name.replace("__", "/"): array(*shape) for name, shape in shapes.items()}
  stacks = Stacks(paths)
  return {path: stacks.positions(path) for path in paths}


def test_an_axis_more_than_all_arrays_need_stacks_in_front():
  both = stacked(mlp__kernel=(6, 4, 8), mlp__bias=(6, 8))
  assert both == {"mlp/kernel": (0,), "mlp/bias": (0,)}
  two = stacked(dense__kernel=(2, 3, 4, 8), norm__scale=(2, 3, 8))
  assert set(two.values()) == {(0, 1)}


def test_arrays_that_need_all_their_axes_stack_none():
  assert set(stacked(mlp__kernel=(4, 8), mlp__bias=(8,)).values()) == {()}
  assert stacked(conv__kernel=(3, 4, 8)) == {"conv/kernel": ()}


def test_only_an_array_that_can_be_nothing_else_tells():
  """A kernel of rank 3 may be a convolution; that of a dense layer may not."""
  assert stacked(mixer__kernel=(6, 4, 8)) == {"mixer/kernel": ()}
  assert stacked(dense__kernel=(6, 4, 8)) == {"dense/kernel": (0,)}
  assert stacked(norm__scale=(6, 8)) == {"norm/scale": (0,)}
  assert stacked(embed__embedding=(6, 9, 8)) == {"embed/embedding": (0,)}
  assert stacked(ScanMixer_0__kernel=(6, 4, 8)) == {"ScanMixer_0/kernel": (0,)}


def test_a_module_is_stacked_where_those_around_it_are_not():
  found = stacked(
    layers__dense__kernel=(6, 4, 8),
    layers__norm__scale=(6, 8),
    head__kernel=(4, 2),
    head__bias=(2,),
  )
  assert found == {
    "layers/dense/kernel": (0,),
    "layers/norm/scale": (0,),
    "head/kernel": (),
    "head/bias": (),
  }


@pytest.mark.parametrize(
  ("kernel", "bias", "scale", "position"),
  [
    ((4, 5, 8), (8, 5), (9, 5), 1),
    ((4, 8, 5), (8, 5), (9, 5), -1),
    ((4, 5, 8), (5, 8), (5, 9), -2),
  ],
)
def test_a_stack_may_be_elsewhere(kernel, bias, scale, position):
  """Without it the bias counts the outputs of the kernel."""
  found = stacked(m__kernel=kernel, m__bias=bias, m__norm__scale=scale)
  assert set(found.values()) == {(position,)}


def test_a_bias_of_all_outputs_tells_no_stack_elsewhere():
  """Eight heads of five: the layer may have two axes of outputs."""
  assert set(stacked(m__kernel=(4, 8, 5), m__bias=(8, 5)).values()) == {()}


def test_what_is_left_of_a_bias_counts_the_outputs_of_its_weight():
  assert set(stacked(m__kernel=(5, 4, 8), m__bias=(5, 4)).values()) == {()}
  assert set(stacked(m__weight=(5, 8, 4), m__bias=(5, 8)).values()) == {(0,)}
  assert set(stacked(m__weight=(8, 4, 3), m__bias=(8, 1)).values()) == {()}
