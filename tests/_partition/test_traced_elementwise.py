"""What ``traced_partition`` reads element by element, and what it says of it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import mbf_optax
from tests._partition.traced import (
  RMS,
  array,
  dense,
  mean,
  read,
  unread,
)

pytestmark = pytest.mark.promotes  # models are written as users write them

X = array(3, 4)


def test_a_tied_embedding_is_named():
  def model(p, tokens):
    x = jnp.take(p["table"], tokens, axis=0) + p["position"]
    x = jnp.tanh(x @ p["w"])
    return x @ p["table"].T

  params = {"table": array(11, 4), "position": array(5, 4), "w": array(4, 4)}
  tokens = array(2, 5, dtype=jnp.int32)
  assert read(mean(model), params, tokens) == {
    "table": RMS,
    "position": RMS,
    "w": dense((0,)),
  }
  (reason,) = unread(mean(model), params, tokens).items()
  assert reason[0] == "table"
  assert "two ways" in reason[1]
  assert "gather" in reason[1]
  assert "dot_general" in reason[1]


def test_positions_of_a_single_sequence():
  """Added one to one to an input, and no weight of the layer that follows."""

  def model(p, x):
    return jnp.tanh((x + p["position"]) @ p["w"])

  params = {"position": array(3, 4), "w": array(4, 6)}
  assert read(mean(model), params, X) == {"position": RMS, "w": dense((0,))}
  assert unread(mean(model), params, X) == {}


def test_a_one_hot_embedding():
  def model(p, tokens):
    return jax.nn.one_hot(tokens, 11) @ p["table"]

  tokens = array(2, 5, dtype=jnp.int32)
  assert read(mean(model), {"table": array(11, 4)}, tokens) == {"table": RMS}
  assert unread(mean(model), {"table": array(11, 4)}, tokens) == {}


def test_weights_tied_in_one_way_and_in_two():
  def one(p, x):
    return jnp.tanh(x @ p) @ p

  assert read(mean(one), array(4, 4), X) == {"": dense((0,))}

  def two(p, x):
    return jnp.tanh(x @ p) @ p.T

  assert read(mean(two), array(4, 4), X) == {"": RMS}
  assert "two ways" in unread(mean(two), array(4, 4), X)[""]


def test_what_is_used_in_no_known_way_is_named():
  def model(p, x):
    return x @ jnp.fft.rfft(p["spectrum"]).real + x @ lax.stop_gradient(p["stopped"])

  params = {"spectrum": array(4, 4), "stopped": array(4, 3), "unused": array(2, 3)}
  assert set(read(mean(model), params, X).values()) == {RMS}
  reasons = unread(mean(model), params, X)
  assert "fft" in reasons["spectrum"]
  assert reasons["unused"] == reasons["stopped"] == "the loss does not use it"


def test_vectors_complex_and_empty_arrays():
  def model(p, x):
    y = x @ p["vector"] + (x.astype(jnp.complex64) @ p["complex"]).real.sum(1)
    return y + p["scalar"] + (x @ p["empty"]).sum(1)

  params = {
    "vector": array(4),
    "complex": array(4, 3, dtype=jnp.complex64),
    "scalar": array(),
    "empty": array(4, 0),
  }
  assert read(mean(model), params, X) == dict.fromkeys(sorted(params), RMS)
  assert mbf_optax.traced_partition(mean(model), params, X).unread == ()


def test_the_scale_of_every_head():
  """Repeated over the rest, and no weight of the product that follows."""

  def model(p, x):
    q = x * p["scale"]
    return jnp.einsum("bthk,bshk->bhts", q, x)

  assert read(mean(model), {"scale": array(2, 3)}, array(2, 5, 2, 3)) == {"scale": RMS}
