"""Products and convolutions: what is a weight in them, and where its outputs are."""

import jax.numpy as jnp
import pytest
from jax import lax

from tests._partition.traced import (
  NUMBERS,
  RMS,
  alone,
  array,
  dense,
  kernel,
  mean,
  read,
  unread,
)

pytestmark = pytest.mark.promotes  # models are written as users write them

X = array(3, 4)
IMAGES = array(2, 8, 8, 4)


@pytest.mark.parametrize("left", [True, False])
def test_outputs_are_the_batch_then_the_left_then_the_right_axes(left):
  """A weight of a stack of five, as either operand; its bias tells the outputs."""

  def model(p, x):
    if left:  # five layers, six outputs, three rows
      y = lax.dot_general(p["w"], x, (((1,), (2,)), ((0,), (0,))))
      return y + p["b"][:, :, None]
    y = lax.dot_general(x, p["w"], (((2,), (1,)), ((0,), (0,))))
    return y + p["b"][:, None, :]

  params = {"w": array(5, 4, 6), "b": array(5, 6)}
  assert read(mean(model), params, array(5, 3, 4)) == {
    "w": dense((1,), (0,), "b", (0, 2))
  }


def test_groups_of_rows_stack_experts_and_are_no_axis_of_the_outputs():
  def model(p, x, sizes):
    return lax.ragged_dot(x, p["w"], sizes) + p["b"]

  params = {"w": array(5, 4, 6), "b": array(6)}
  found = read(mean(model), params, X, array(5, dtype=jnp.int32))
  assert found["w"] == dense((1,), (0,))


def test_products_of_weights_alone_say_nothing_beside_others():
  """As in a penalty that keeps a weight orthogonal."""

  def loss(p, x):
    penalty = jnp.sum((p @ p.T - jnp.eye(4)) ** 2)
    return jnp.mean((x @ p) ** 2) + penalty

  assert read(loss, array(4, 6), X) == {"": dense((0,))}


def test_a_product_with_a_one_hot_code_is_an_embedding():
  def loss(p, x, tokens):
    y = (tokens[:, None] == jnp.arange(11)).astype(float) @ p["table"]
    return jnp.mean((y + p["b"]) ** 2)

  params = {"table": array(11, 4), "b": array(4)}
  tokens = array(3, dtype=jnp.int32)
  assert read(loss, params, X, tokens) == {"table": RMS, "b": RMS}
  assert unread(loss, params, X, tokens) == {}


def test_positions_of_an_input_are_no_weight_of_the_layer_after_them():
  def model(p, x):
    return (x + p["position"]) @ p["w"] + p["b"]

  params = {"position": array(3, 4), "w": array(4, 6), "b": array(6)}
  assert read(mean(model), params, X) == {
    "position": RMS,
    "w": dense((0,), bias="b", axes=(1,)),
  }


def test_outputs_that_meet_a_stack_one_by_one_are_no_layers():
  def model(p, x):
    return jnp.einsum("bi,ibo->io", jnp.tanh(x @ p["w"]), p["v"])

  params = {"w": array(4, 6), "v": array(6, 3, 2)}
  assert read(mean(model), params, X) == {"w": dense((0,)), "v": dense((1,), (0,))}


def test_the_outputs_of_a_convolution_are_where_its_numbers_say():
  """Channels in front of a square image, and a bias for each of them."""

  def model(p, x):
    y = lax.conv_general_dilated(
      x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NCHW")
    )
    return y + p["b"][:, None, None]

  params = {"k": array(3, 3, 4, 8), "b": array(8)}
  assert read(mean(model), params, IMAGES) == {"k": kernel((0, 1)), "b": alone()}


def test_the_image_of_a_convolution_is_followed_no_further():
  def model(p, x):
    x = x * 0.0 + p["image"]
    return lax.conv_general_dilated(
      x, p["k"], (1, 1), "SAME", dimension_numbers=NUMBERS
    )

  def learned(p, k):
    return lax.conv_general_dilated(p, k, (1, 1), "SAME", dimension_numbers=NUMBERS)

  params = {"k": array(3, 3, 4, 6), "image": array(8, 8, 4)}
  assert read(mean(model), params, IMAGES) == {"k": kernel((0, 1)), "image": RMS}
  reasons = unread(mean(learned), IMAGES, array(3, 3, 4, 6))
  assert "conv_general_dilated of (2, 8, 8, 4)" in reasons[""]
