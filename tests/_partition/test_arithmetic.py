"""What arithmetic leaves of a weight, and of a product that a bias is added to."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests._partition.traced import RMS, array, dense, mean, read, unread

pytestmark = pytest.mark.promotes  # models are written as users write them

X = array(3, 4)
BESIDE_A_BIAS = {  # a product, data of its shape and of one element; is it scaled?
  "negated": (lambda y, x, t: -y, True),
  "divided by a number of the data": (lambda y, x, t: y / t, True),
  "weighed by constants": (lambda y, x, t: y * jnp.linspace(1, 2, 6), True),
  "subtracted from data": (lambda y, x, t: x - y, True),
  "multiplied with data": (lambda y, x, t: y * x, False),
  "squared": (lambda y, x, t: y * y, False),
  "bent": (lambda y, x, t: jnp.tanh(y), False),
}


@pytest.mark.parametrize("name", BESIDE_A_BIAS)
def test_a_bias_is_added_to_products_that_were_scaled_or_summed(name):
  change, joins = BESIDE_A_BIAS[name]

  def model(p, x, y, t):
    return change(x @ p["w"], y, t) + p["b"]

  joined, apart = {"w": dense((0,), bias="b", axes=(1,))}, {"w": dense((0,)), "b": RMS}
  params = {"w": array(4, 6), "b": array(6)}
  found = read(mean(model), params, X, array(3, 6), array())
  assert found == (joined if joins else apart)


OF_A_WEIGHT = {  # what it is made with data of its shape; is it a weight still?
  "masked": (lambda w, m: w * m, True),
  "selected": (lambda w, m: jnp.where(m > 0, w, 0.0), True),
  "moved": (lambda w, m: m - w, True),
  "bent": (lambda w, m: jnp.exp(w), True),
  "at least a number": (lambda w, m: jnp.maximum(w, 0.0), True),
  "at least a number of the data": (lambda w, m: jnp.maximum(w, m.sum()), True),
  "at least the data": (lambda w, m: jnp.maximum(w, m), False),
}


@pytest.mark.parametrize("name", OF_A_WEIGHT)
def test_a_weight_that_met_data_one_to_one_is_still_one(name):
  change, is_weight = OF_A_WEIGHT[name]

  def model(p, x, m):
    return x @ change(p["w"], m)

  found = read(mean(model), {"w": array(4, 6)}, X, array(4, 6))
  assert found == {"w": dense((0,)) if is_weight else RMS}


def test_a_factor_with_noise_added_is_no_data():
  """A factor with data added to it were none: positions may be added to an input."""

  def model(p, x, key):
    a = p["a"] + 0.1 * jax.random.normal(key, p["a"].shape)
    return x @ (a @ p["b"])

  key = jax.eval_shape(lambda: jax.random.key(0))
  params = {"a": array(4, 2), "b": array(2, 6)}
  assert read(mean(model), params, X, key) == {"a": dense((1,)), "b": dense((0,))}


def test_an_array_that_is_repeated_over_the_data_is_no_weight():
  """By ``jax.lax``, which repeats axes of one element, or by ``jax.numpy`` before."""

  def repeated(p, x, y):
    return lax.mul(x, p["row"]) @ y + (x * p["row"][0]) @ y

  assert read(mean(repeated), {"row": array(1, 4)}, X, array(4, 2)) == {"row": RMS}


def test_what_no_gradient_comes_back_through_is_no_use():
  def model(p, x):
    return jnp.tanh(x @ p) @ lax.stop_gradient(p).T

  assert read(mean(model), array(4, 6), X) == {"": dense((0,))}
  assert unread(mean(model), array(4, 6), X) == {}
