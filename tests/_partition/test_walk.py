"""The walk along a jaxpr: where it records, what is differentiated, what it says."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import mbf_optax
from mbf_optax._partition.uses import Use
from mbf_optax._partition.values import Source, Value
from mbf_optax._partition.views import of_parameter
from mbf_optax._partition.walk import Walk, describe
from tests._partition.traced import array

W, X = array(4, 6), array(3, 4)
WEIGHT, DATA = (
  Value(Source.PARAMETERS, (of_parameter("w", (4, 6)),)),
  Value(Source.DATA),
)


def follow(function, wanted=None):
  """What a walk recorded of a function of a weight and data, and its outputs."""
  walk = Walk()
  outputs = walk.follow(jax.make_jaxpr(function)(W, X), [WEIGHT, DATA], wanted)
  return walk.record, outputs


def uses(function, wanted=None):
  return [(r.path, r.use) for r in follow(function, wanted)[0].uses.values()]


PRODUCT = ("w", Use("product", inputs=(0,)))


def test_a_product_is_recorded_with_the_equation_in_words():
  record, (output,) = follow(lambda w, x: x @ w)
  (one,) = record.uses.values()
  assert (one.path, one.use) == PRODUCT
  assert one.equation == "dot_general of (3, 4) and (4, 6)"
  assert one.with_data
  assert [view.path for view in output.outputs] == ["w"]
  equation = jax.make_jaxpr(jnp.tanh)(X).eqns[0]
  assert describe(equation) == "tanh of (3, 4)"


def test_only_what_gradients_come_back_through_is_recorded():
  def two(w, x):
    return (x @ w).sum(), (x * (w[:, :1].T)).sum()

  assert uses(two, [True, False]) == [PRODUCT]
  assert uses(two, [False, True]) == [("w", Use("elementwise"))]
  assert uses(two, [False, False]) == []
  assert len(uses(two)) == 2
  assert uses(lambda w, x: lax.stop_gradient(x @ w)) == []
  assert uses(lambda w, x: (x @ w, x)[1]) == []
  assert uses(lambda w, x: jax.jit(lambda: (x @ w, 2.0 * x))()[0]) == [PRODUCT]
  assert uses(lambda w, x: lax.scan(lambda c, _: (c, x @ w), 0.0, None, 2)) == [PRODUCT]


def test_products_that_autodiff_has_reversed_say_nothing():
  """They contract the outputs of the weight; neither does what is inside a call."""

  def gradient(w, x):
    return jax.grad(lambda x: (jnp.tanh(x @ w) ** 2).sum())(x)

  assert set(uses(gradient)) == {PRODUCT}
  assert set(uses(jax.jit(gradient))) == {PRODUCT}

  def of_a_call(w, x):
    u = jax.jit(lambda x: jnp.tanh(jax.jit(jnp.dot)(x, w)).sum())
    return jax.grad(u)(x)

  assert set(uses(of_a_call)) == {PRODUCT}


def test_what_is_muted_withdraws_loses_and_adds_nothing():
  walk, view = Walk(muted=True), of_parameter("w", (4, 6))._replace(events=(1,))
  equation = jax.make_jaxpr(jnp.tanh)(X).eqns[0]
  output = of_parameter("v", (4, 6))._replace(step=1)
  numbers = [walk.use(view, Use("elementwise"), equation, True) for _ in range(2)]
  assert numbers == [0, 1]
  walk.is_weight(view)
  walk.lose(view, equation)
  walk.stack_alike(view.axes[0], 0, [output])
  assert not walk.is_bias(view, [output])
  assert walk.record == Walk().record
  walk.muted = False
  walk.is_weight(view)
  walk.lose(view, equation)
  walk.lose(view, jax.make_jaxpr(jnp.sin)(X).eqns[0])
  walk.stack_alike(view.axes[0], 0, [output])
  assert walk.is_bias(view, [output])
  assert walk.record.withdrawn == {1}
  assert walk.record.lost == {"w": "tanh of (3, 4)"}
  assert walk.record.stacks == {("v", 0)}


def test_a_value_of_one_element_is_a_number():
  def model(w, x):
    return x.sum(), x[:1, :1], x, w[:1, :1], jnp.full((3, 4), x.sum())

  scalars = [value.scalar for value in follow(model)[1]]
  assert scalars == [True, True, False, True, True]


def test_an_equation_that_cannot_be_followed(monkeypatch):
  """The message names it and the parameter."""

  def broken(walk, equation, values):
    raise KeyError("dimension_numbers")

  rules = mbf_optax._partition.walk._RULES
  monkeypatch.setitem(rules, "dot_general", broken)
  with pytest.raises(
    ValueError, match=r"dot_general of \(3, 4\) and \(4, 6\).*\['w'\]"
  ):
    follow(lambda w, x: x @ w)
