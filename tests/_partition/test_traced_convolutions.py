"""Convolutions as ``traced_partition`` reads them."""

import functools

import jax
import pytest
from jax import lax

from tests._partition.traced import (
  NUMBERS,
  alone,
  array,
  convolution,
  dense,
  kernel,
  mean,
  read,
)

pytestmark = pytest.mark.promotes  # models are written as users write them

# Convolutions: (*spatial, in, out) unless said.

IMAGES = array(2, 16, 16, 4)


CONVOLUTIONS = {  # the kernel's shape, arguments, and the reading
  "plain": ((3, 3, 4, 6), {}, kernel((0, 1))),
  "strided": ((3, 3, 4, 6), {"strides": (2, 2)}, kernel((0, 1))),
  "dilated": ((3, 3, 4, 6), {"rhs_dilation": (2, 2)}, kernel((0, 1))),
  "grouped": ((3, 3, 2, 6), {"feature_group_count": 2}, kernel((0, 1))),
  "depthwise": ((3, 3, 1, 8), {"feature_group_count": 4}, kernel((0, 1))),
  "along one axis": ((1, 3, 4, 6), {}, kernel((0, 1))),
  "six by six": ((6, 6, 4, 6), {}, kernel((0, 1))),
  "seven by seven": ((7, 7, 4, 6), {}, kernel((0, 1))),
  "pointwise": ((1, 1, 4, 6), {}, dense((0, 1, 2), bias="b", axes=(3,))),
  "patches": (
    (4, 4, 4, 6),
    {"strides": (4, 4)},
    dense((0, 1, 2), bias="b", axes=(3,)),
  ),
  "many offsets": ((15, 14, 4, 6), {}, dense((0, 1, 2), bias="b", axes=(3,))),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
  shape, arguments, expected = CONVOLUTIONS[name]
  model = functools.partial(convolution, **arguments)
  readings = read(mean(model), {"k": array(*shape), "b": array(shape[-1])}, IMAGES)
  assert readings.pop("k") == expected
  assert readings == ({"b": alone()} if len(expected) == 3 else {})


@pytest.mark.parametrize("transposed", [True, False])
def test_transposed_convolutions(transposed):
  """Kernels overlap, or every offset of an output patch has neurons of its own."""

  def model(p, x):
    x = lax.conv_transpose(
      *(x, p["k"], (2, 2), "SAME"),
      dimension_numbers=NUMBERS,
      transpose_kernel=transposed,
    )
    return lax.conv_transpose(x, p["up"], (2, 2), "SAME", dimension_numbers=NUMBERS)

  overlapping = array(4, 4, 6, 4) if transposed else array(4, 4, 4, 6)
  params = {"k": overlapping, "up": array(2, 2, 6, 5)}
  assert read(mean(model), params, IMAGES) == {"k": kernel((0, 1)), "up": dense((2,))}


def test_channels_first_and_one_dimension():
  def model(p, x):
    y = lax.conv(x, p["k"], (1, 1), "SAME") + p["b"]
    y = y.reshape(*y.shape[:2], -1)
    return lax.conv_general_dilated(y, p["line"], (1,), "VALID")

  params = {"k": array(6, 4, 3, 3), "b": array(6, 1, 1), "line": array(5, 6, 9)}
  assert read(mean(model), params, array(2, 4, 8, 8)) == {
    "b": alone(),
    "k": kernel((2, 3)),
    "line": kernel((2,)),
  }


def test_an_ensemble_of_convolutions():
  model = jax.vmap(functools.partial(convolution))
  params = {"k": array(5, 3, 3, 4, 6), "b": array(5, 6)}
  assert read(mean(model), params, array(5, 2, 8, 8, 4)) == {
    "k": kernel((1, 2), (0,)),
    "b": alone((0,)),
  }


def test_a_convolution_for_each_example():
  def model(p, x):
    return jax.vmap(lambda x: convolution(p, x[None])[0])(x)

  params = {"k": array(3, 3, 4, 6), "b": array(6)}
  assert read(mean(model), params, IMAGES) == {"k": kernel((0, 1)), "b": alone()}


def test_kernels_on_the_same_images_count_as_one_layer():
  """Nothing after them says that they are several."""
  model = jax.vmap(convolution, in_axes=(0, None))
  params = {"k": array(5, 3, 3, 4, 6), "b": array(5, 6)}
  readings = read(mean(model), params, array(2, 8, 8, 4))
  assert readings == {"k": kernel((1, 2)), "b": alone()}


@pytest.mark.parametrize("shared", [True, False])
def test_an_ensemble_of_deep_convolutions(shared):
  def network(p, x):
    return convolution(p["last"], jax.nn.relu(convolution(p["first"], x)))

  params = {
    "first": {"k": array(5, 3, 3, 4, 6), "b": array(5, 6)},
    "last": {"k": array(5, 3, 3, 6, 2), "b": array(5, 2)},
  }
  x = array(2, 8, 8, 4) if shared else array(5, 2, 8, 8, 4)
  network = jax.vmap(network, in_axes=(0, None if shared else 0))
  assert read(mean(network), params, x) == {
    "first/k": kernel((1, 2), (0,)),
    "first/b": alone((0,)),
    "last/k": kernel((1, 2), (0,)),
    "last/b": alone((0,)),
  }
