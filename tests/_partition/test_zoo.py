"""A zoo of Haiku and Equinox layers: what each is read as, written down by hand.

Every entry is a layer, its input, and the readings of the arrays that have blocks:
block axes, stacked axes, estimator, and the bias that joins. All other arrays are read
element by element, in silence unless the entry says that they are named.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from tests._partition.test_zoo_flax import LINEN, NNX
from tests._partition.traced import array
from tests._partition.zoo import (
  IMAGES,
  KEY,
  LINE,
  ROWS,
  SEQUENCES,
  TOKENS,
  VOLUMES,
  check,
  dense,
  kernel,
  size,
)

pytestmark = pytest.mark.promotes


def haiku_recurrent(make):
  def run(x):
    core = make()
    return hk.dynamic_unroll(core, x, core.initial_state(5))[0]

  return run


HAIKU = {
  "linear": (lambda x: hk.Linear(7)(x), ROWS, {"linear/w": dense(0, bias="linear/b")}),
  "conv 1d": (lambda x: hk.Conv1D(7, 3)(x), LINE, {"conv1_d/w": kernel(0)}),
  "conv 2d": (lambda x: hk.Conv2D(7, 3)(x), IMAGES, {"conv2_d/w": kernel(0, 1)}),
  "conv 3d": (lambda x: hk.Conv3D(7, 3)(x), VOLUMES, {"conv3_d/w": kernel(0, 1, 2)}),
  "channels first": (
    lambda x: hk.Conv2D(7, 3, data_format="NCHW")(x),
    array(2, 6, 8, 8),
    {"conv2_d/w": kernel(0, 1)},
  ),
  "transposed": (
    lambda x: hk.Conv2DTranspose(7, 3, 2)(x),
    IMAGES,
    {"conv2_d_transpose/w": kernel(0, 1)},
  ),
  "depthwise": (
    lambda x: hk.DepthwiseConv2D(2, 3)(x),
    IMAGES,
    {"depthwise_conv2_d/w": kernel(0, 1)},
  ),
  "separable": (
    lambda x: hk.SeparableDepthwiseConv2D(1, 3)(x),
    IMAGES,
    {
      f"separable_depthwise_conv2_d/~/depthwise_conv2_d{i}/w": kernel(0, 1)
      for i in ("", "_1")
    },
  ),
  "embedding": (lambda t: hk.Embed(11, 6)(t), TOKENS, {}),
  "one-hot embedding": (
    lambda t: hk.Embed(11, 6, lookup_style="ONE_HOT")(t),
    TOKENS,
    {},
  ),
  "layer norm": (lambda x: hk.LayerNorm(-1, True, True)(x), ROWS, {}),
  "bias": (lambda x: hk.Bias(bias_dims=[-2, -1])(x), SEQUENCES, {}),
  "attention": (
    lambda x: hk.MultiHeadAttention(2, 3, w_init_scale=1.0)(x, x, x),
    SEQUENCES,
    {
      f"multi_head_attention/{n}/w": dense(0, bias=f"multi_head_attention/{n}/b")
      for n in ("query", "key", "value", "linear")
    },
  ),
  "lstm": (
    haiku_recurrent(lambda: hk.LSTM(7)),
    SEQUENCES,
    {"lstm/linear/w": dense(0, bias="lstm/linear/b")},
  ),
  "gru": (
    haiku_recurrent(lambda: hk.GRU(7)),
    SEQUENCES,
    {"gru/w_i": dense(0), "gru/w_h": dense(0, bias="gru/b")},
  ),
  "vanilla": (
    haiku_recurrent(lambda: hk.VanillaRNN(7)),
    SEQUENCES,
    {
      f"vanilla_rnn/{n}/w": dense(0, bias=f"vanilla_rnn/{n}/b")
      for n in ("linear", "linear_1")
    },
  ),
  "layer stack": (
    lambda x: hk.experimental.layer_stack(4)(lambda x: jnp.tanh(hk.Linear(6)(x)))(x),
    ROWS,
    {
      "__layer_stack_no_per_layer/linear/w": dense(
        1, stack=(0,), bias="__layer_stack_no_per_layer/linear/b"
      )
    },
  ),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haiku(name):
  layer, x, expected = HAIKU[name]
  model = hk.without_apply_rng(hk.transform(layer))
  params = jax.eval_shape(model.init, KEY, x)
  check(lambda params, x: size(model.apply(params, x)), params, (x,), expected)


# Equinox, whose layers take one example.


class EquinoxStack(eqx.Module):
  layers: eqx.nn.Linear

  def __init__(self, key):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))
    self.layers = make(jax.random.split(key, 4))

  def __call__(self, x):
    arrays, static = eqx.partition(self.layers, eqx.is_array)

    def step(x, layer):
      return (jnp.tanh(eqx.combine(layer, static)(x)), None)

    return jax.lax.scan(step, x, arrays)[0]


class EquinoxRecurrent(eqx.Module):
  cell: eqx.Module
  states: int = eqx.field(static=True)

  def __call__(self, xs):
    zeros = jnp.zeros(self.cell.hidden_size)
    start = zeros if self.states == 1 else (zeros,) * self.states
    return jax.lax.scan(lambda c, x: (self.cell(x, c), None), start, xs)[0]


WEIGHT = dense(1, bias="bias")
LINE_FIRST, IMAGE_FIRST = array(2, 6, 8), array(2, 6, 8, 8)
EQUINOX = {
  "linear": (lambda k: eqx.nn.Linear(6, 7, key=k), ROWS, {"weight": WEIGHT}),
  "linear, one number": (
    lambda k: eqx.nn.Linear(6, "scalar", key=k),
    ROWS,
    {"weight": WEIGHT},
  ),
  "conv 1d": (
    lambda k: eqx.nn.Conv1d(6, 7, 3, key=k),
    LINE_FIRST,
    {"weight": kernel(2)},
  ),
  "conv 2d": (
    lambda k: eqx.nn.Conv2d(6, 7, 3, key=k),
    IMAGE_FIRST,
    {"weight": kernel(2, 3)},
  ),
  "conv 1x1": (
    lambda k: eqx.nn.Conv2d(6, 7, 1, key=k),
    IMAGE_FIRST,
    {"weight": dense(1, 2, 3, bias="bias")},
  ),
  "grouped": (
    lambda k: eqx.nn.Conv2d(6, 8, 3, groups=2, key=k),
    IMAGE_FIRST,
    {"weight": kernel(2, 3)},
  ),
  "transposed": (
    lambda k: eqx.nn.ConvTranspose2d(6, 7, 3, 2, key=k),
    IMAGE_FIRST,
    {"weight": kernel(2, 3)},
  ),
  "attention": (
    lambda k: Attending(eqx.nn.MultiheadAttention(2, 6, key=k)),
    SEQUENCES,
    {f"layer/{n}_proj/weight": dense(1) for n in ("query", "key", "value", "output")},
  ),
  "perceptron": (
    lambda k: eqx.nn.MLP(6, 2, 7, 2, key=k),
    ROWS,
    {f"layers/{i}/weight": dense(1, bias=f"layers/{i}/bias") for i in range(3)},
  ),
  "gru": (
    lambda k: EquinoxRecurrent(eqx.nn.GRUCell(6, 7, key=k), 1),
    SEQUENCES,
    {
      "cell/weight_ih": dense(1, bias="cell/bias"),
      "cell/weight_hh": dense(1),
    },
  ),
  "lstm": (
    lambda k: EquinoxRecurrent(eqx.nn.LSTMCell(6, 7, key=k), 2),
    SEQUENCES,
    {
      "cell/weight_ih": dense(1),
      "cell/weight_hh": dense(1, bias="cell/bias"),
    },
  ),
  "embedding": (
    lambda k: eqx.nn.Embedding(11, 6, key=k),
    array(5, dtype=jnp.int32),
    {},
  ),
  "layer norm of two axes": (lambda k: eqx.nn.LayerNorm((5, 6)), SEQUENCES, {}),
  "weight norm": (
    lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(6, 7, key=k)),
    ROWS,
    {"layer/weight": dense(1, bias="layer/bias")},
  ),
  "stack": (
    EquinoxStack,
    ROWS,
    {"layers/weight": dense(2, stack=(0,), bias="layers/bias")},
  ),
}


class Attending(eqx.Module):
  layer: eqx.nn.MultiheadAttention

  def __call__(self, x):
    return self.layer(x, x, x)


@pytest.mark.parametrize("name", EQUINOX)
def test_equinox(name):
  make, x, expected = EQUINOX[name]

  def is_array(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)

  params, static = eqx.partition(eqx.filter_eval_shape(make, KEY), is_array)

  def loss(params, x):
    return size(jax.vmap(eqx.combine(params, static))(x))

  check(loss, params, (x,), expected)


def test_the_zoo_is_large():
  assert sum(map(len, (LINEN, NNX, HAIKU, EQUINOX))) >= 60
