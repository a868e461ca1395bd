"""Parameters inside calls, branches and loops, and what comes out of these."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from tests._partition.traced import RMS, array, dense, mean, read, unread

pytestmark = pytest.mark.promotes  # models are written as users write them

X, SQUARE = array(3, 4), array(4, 4)


def test_shards_of_a_mesh_are_followed_no_further():
  """What is inside is of other shapes."""
  mesh = AbstractMesh((2,), ("i",), axis_types=(AxisType.Auto,))
  specs = PartitionSpec(), PartitionSpec(None, "i")
  product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=specs, out_specs=specs[1])

  def model(p, x):
    return product(x, p["w"])

  assert read(mean(model), {"w": array(4, 6)}, X) == {"w": RMS}
  assert "shard_map" in unread(mean(model), {"w": array(4, 6)}, X)["w"]


def carries(change):
  """A model whose loop hands a weight on, changed."""

  def model(p, x):
    def step(carry, _):
      x, w = carry
      w = change(w, x)
      return (jnp.tanh(x @ w), w), None

    return lax.scan(step, (x, p["w"]), None, 3)[0][0]

  return mean(model)


@pytest.mark.parametrize(
  "change",
  [lambda w, x: w, lambda w, x: 0.9 * w, lambda w, x: w + 0.1 * x.T @ x],
  ids=["as it is", "decayed", "learned"],
)
def test_a_loop_carries_a_weight_up_to_what_is_added_to_it(change):
  assert read(carries(change), {"w": SQUARE}, X) == {"w": dense((0,))}


@pytest.mark.parametrize(
  "change", [lambda w, x: w.T, lambda w, x: x.T @ x], ids=["another layout", "data"]
)
def test_what_a_loop_makes_of_a_weight_is_data(change):
  assert read(carries(change), {"w": SQUARE}, X) == {"w": RMS}
  assert "scan" in unread(carries(change), {"w": SQUARE}, X)["w"]


def test_a_learned_start_of_a_loop():
  """It is the state of the first step alone."""

  def model(p, x):
    start = jnp.broadcast_to(p["start"], (3, 4))

    def step(h, x):
      return (jnp.tanh(h @ p["w"] + x), None)

    return lax.scan(step, start, x)[0]

  params = {"start": array(3, 4), "w": array(4, 4)}
  assert read(mean(model), params, array(5, 3, 4)) == {"start": RMS, "w": dense((0,))}
  assert "scan" in unread(mean(model), params, array(5, 3, 4))["start"]


def test_the_test_of_a_loop_uses_no_weight():
  """It reads arrays of its own, before those of the body."""

  def model(p, x):
    def going(x):
      return (x @ p["limit"]).sum() < 9

    return lax.while_loop(going, lambda x: jnp.tanh(x @ p["w"]), x)

  params = {"limit": SQUARE, "w": SQUARE}
  assert read(mean(model), params, X) == {"limit": RMS, "w": dense((0,))}
  assert unread(mean(model), params, X) == {"limit": "the loss does not use it"}


def test_weights_that_a_loop_carries_are_no_data():
  """Nor is a sum of what they make one number, though it starts as one."""

  def loss(p, x):
    def step(carry, _):
      y, penalty, w = carry
      return (y + x @ w, penalty + w @ w.T, 0.9 * w), None

    start = jnp.zeros((3, 6)), jnp.zeros((4, 4)), p["w"]
    y, penalty, _ = lax.scan(step, start, None, 3)[0]
    return jnp.mean((y * p["g"]) ** 2) + jnp.mean(penalty)

  params = {"w": array(4, 6), "g": array(3, 6)}
  assert read(loss, params, X) == {"w": dense((0,)), "g": RMS}
  assert unread(loss, params, X) == {}


def test_products_that_go_into_a_loop_or_come_out_of_it_are_data():
  """A bias added to them there, or to all layers' outputs at once, stays beside."""

  def into(p, x):
    return lax.scan(lambda c, y: (c, y + p["b"]), 0.0, x @ p["w"])[1]

  params = {"w": array(4, 6), "b": array(6)}
  assert read(mean(into), params, X) == {"w": dense((0,)), "b": RMS}

  def out_of(p, x):
    y = lax.scan(lambda x, w: (x, x @ w), x, p["w"])[1]
    return y + p["b"][:, None]

  params = {"w": array(5, 4, 6), "b": array(5, 6)}
  assert read(mean(out_of), params, X) == {"w": dense((1,), (0,)), "b": RMS}


def test_branches():
  def model(p, x, flag):
    y = lax.cond(flag, lambda w: x @ w, lambda w: x @ (2.0 * w), p["w"])
    return y + lax.cond(flag, lambda w: x @ w, lambda w: y, p["v"])

  params = {"w": array(4, 6), "v": array(4, 6)}
  expected = {"w": dense((0,)), "v": dense((0,))}
  assert read(mean(model), params, X, array(dtype=bool)) == expected


def test_branches_that_do_not_agree():
  """Two of three do, on a weight's layout and on a product."""

  def model(p, x, which):
    w = lax.switch(which, [lambda w: w, lambda w: 2.0 * w, lambda w: w.T], p["w"])
    same = lax.switch(which, [lambda y: y, lambda y: -y], x @ p["v"]) + p["b"]
    branches = [lambda y: y, lambda y: -y, jnp.tanh]
    return x @ w + same + lax.switch(which, branches, x @ p["u"]) + p["c"]

  params = dict.fromkeys("wvu", SQUARE) | dict.fromkeys("bc", array(4))
  assert read(mean(model), params, X, array(dtype=jnp.int32)) == {
    "w": RMS,
    "v": dense((0,), bias="b", axes=(1,)),
    "u": dense((0,)),
    "c": RMS,
  }


@pytest.mark.parametrize(
  "call",
  [jax.jit, lambda f: lambda: lax.cond(jnp.array(True), f, f)],
  ids=["call", "branches"],
)
def test_an_output_that_nothing_comes_back_through(call):
  def loss(p, x):
    y, other = call(lambda: (x @ p["w"], x @ p["v"]))()
    return jnp.mean(y**2), other

  params = {"w": SQUARE, "v": SQUARE}
  assert unread(loss, params, X) == {"v": "the loss does not use it"}
