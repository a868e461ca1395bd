"""A zoo of layers: what each is read as, written down by hand.

Every entry is a layer, its input, and the readings of the arrays that have blocks:
block axes, stacked axes, estimator, and the bias that joins. All other arrays are read
element by element, in silence unless the entry says that they are named.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import mbf_optax
from tests._partition.traced import array

pytestmark = pytest.mark.promotes

KEY = jax.random.key(0)
ROWS = array(5, 6)  # a batch of 5 rows of 6 features
SEQUENCES = array(2, 5, 6)
LINE, IMAGES, VOLUMES = array(2, 8, 6), array(2, 8, 8, 6), array(2, 8, 8, 8, 6)
HEADS = array(2, 5, 2, 3)
TOKENS = array(2, 5, dtype=jnp.int32)


def dense(*axes, bias=None, stack=()):
  return (axes, stack, "auto", bias)


def kernel(*axes, estimator="full", stack=()):
  return (axes, stack, estimator, None)


def check(loss, params, args, expected):
  partition = mbf_optax.traced_partition(loss, params, *args)
  found = {
    r.path: (r.layer.block_axes, r.layer.stack_axes, r.layer.estimator, r.bias_path)
    for r in partition(params)
    if not r.layer.elementwise
  }
  assert found == expected
  assert partition.unread == ()


def size(outputs):
  """The mean square of all that a layer returns."""
  leaves = [leaf for leaf in jax.tree.leaves(outputs) if leaf.dtype == jnp.float32]
  return sum(jnp.mean(leaf**2) for leaf in leaves)


# Flax Linen.


class Stack(nn.Module):
  axis: int
  bare: bool = False

  @nn.compact
  def __call__(self, x):
    class Block(nn.Module):
      bare: bool

      @nn.compact
      def __call__(self, x, _):
        x = x if self.bare else nn.LayerNorm()(x)
        return x + nn.Dense(6, use_bias=not self.bare)(x), None

    scanned = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={"params": self.axis},
      split_rngs={"params": True},
      length=4,
    )
    return scanned(self.bare, name="layers")(x, None)[0]


class Ensemble(nn.Module):
  @nn.compact
  def __call__(self, x):
    class Network(nn.Module):
      @nn.compact
      def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(7)(x)))

    lifted = nn.vmap(
      Network,
      in_axes=None,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      axis_size=4,
    )
    return lifted(name="networks")(x)


class Wrapped(nn.Module):
  wrapper: type

  @nn.compact
  def __call__(self, x):
    layer = self.wrapper(nn.Dense(7, name="dense"))
    if self.wrapper is nn.SpectralNorm:
      return layer(x, update_stats=True)
    return layer(x)


class Recurrent(nn.Module):
  cell: nn.RNNCellBase

  @nn.compact
  def __call__(self, x):
    return nn.RNN(self.cell)(x)


def cell(*names, bias):
  """Gates with a product of the input and one of the state, one of them biased."""
  return {
    f"cell/{name}/kernel": dense(0, bias=f"cell/{name}/bias" if biased else None)
    for name, biased in zip(names, bias, strict=True)
  }


BIASED = dense(0, bias="bias")
LSTM_GATES = [side + gate for gate in "ifgo" for side in "ih"]
ATTENTION = {
  **{f"{n}/kernel": dense(0, bias=f"{n}/bias") for n in ("query", "key", "value")},
  "out/kernel": dense(0, 1, bias="out/bias"),
}
LINEN = {
  "dense": (nn.Dense(7), ROWS, {"kernel": BIASED}),
  "dense, no bias": (nn.Dense(7, use_bias=False), ROWS, {"kernel": dense(0)}),
  "one output": (nn.Dense(1), ROWS, {"kernel": BIASED}),
  "general, two outputs": (nn.DenseGeneral((2, 4)), ROWS, {"kernel": BIASED}),
  "general, two inputs": (
    nn.DenseGeneral(7, axis=(-2, -1)),
    HEADS,
    {"kernel": dense(0, 1, bias="bias")},
  ),
  "general, batched": (
    nn.DenseGeneral(7, axis=-1, batch_dims=(0,)),
    HEADS,
    {"kernel": dense(1, bias="bias", stack=(0,))},
  ),
  "einsum": (
    nn.Einsum((2, 3, 7), "bthk,hkd->btd"),
    HEADS,
    {"kernel": dense(0, 1, bias="bias")},
  ),
  "conv 1d": (nn.Conv(7, (3,)), LINE, {"kernel": kernel(0)}),
  "conv 2d": (nn.Conv(7, (3, 3)), IMAGES, {"kernel": kernel(0, 1)}),
  "conv 3d": (nn.Conv(7, (2, 3, 3)), VOLUMES, {"kernel": kernel(0, 1, 2)}),
  "conv 3d, large": (
    nn.Conv(7, (4, 4, 4)),
    VOLUMES,
    {"kernel": kernel(0, 1, 2, estimator="shared")},
  ),
  "conv 1x1": (nn.Conv(7, (1, 1)), IMAGES, {"kernel": dense(0, 1, 2, bias="bias")}),
  "patches": (
    nn.Conv(7, (4, 4), (4, 4)),
    IMAGES,
    {"kernel": dense(0, 1, 2, bias="bias")},
  ),
  "strided": (nn.Conv(7, (3, 3), (2, 2)), IMAGES, {"kernel": kernel(0, 1)}),
  "dilated": (
    nn.Conv(7, (3, 3), kernel_dilation=(2, 2)),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "grouped": (
    nn.Conv(8, (3, 3), feature_group_count=2),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "depthwise": (
    nn.Conv(12, (7, 7), feature_group_count=6),
    IMAGES,
    {"kernel": kernel(0, 1, estimator="shared")},
  ),
  "masked": (
    nn.Conv(7, (3, 3), mask=jnp.ones((3, 3, 6, 7))),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "circular": (
    nn.Conv(7, (3, 3), padding="CIRCULAR"),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "causal": (nn.Conv(7, (3,), padding="CAUSAL"), LINE, {"kernel": kernel(0)}),
  "transposed": (nn.ConvTranspose(7, (4, 4), (2, 2)), IMAGES, {"kernel": kernel(0, 1)}),
  "transposed, tiled": (
    nn.ConvTranspose(7, (2, 2), (2, 2)),
    IMAGES,
    {"kernel": dense(2)},
  ),
  "local": (nn.ConvLocal(7, (3,)), LINE, {"kernel": dense(1, bias="bias", stack=(0,))}),
  "embedding": (nn.Embed(11, 6), TOKENS, {}),
  "layer norm": (nn.LayerNorm(), ROWS, {}),
  "layer norm of two axes": (
    nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2)),
    SEQUENCES,
    {},
  ),
  "group norm": (nn.GroupNorm(3), IMAGES, {}),
  "rms norm": (nn.RMSNorm(), ROWS, {}),
  "instance norm": (nn.InstanceNorm(), IMAGES, {}),
  "prelu": (nn.PReLU(), ROWS, {}),
  "attention": (nn.MultiHeadDotProductAttention(2), SEQUENCES, ATTENTION),
  "attention with normed queries": (
    nn.MultiHeadDotProductAttention(2, use_bias=False, normalize_qk=True),
    SEQUENCES,
    {
      **{f"{name}/kernel": dense(0) for name in ("query", "key", "value")},
      "out/kernel": dense(0, 1),
    },
  ),
  "lstm": (
    Recurrent(nn.LSTMCell(7)),
    SEQUENCES,
    cell(*LSTM_GATES, bias=[False, True] * 4),
  ),
  "optimized lstm": (
    Recurrent(nn.OptimizedLSTMCell(7)),
    SEQUENCES,
    cell(*LSTM_GATES, bias=[False, True] * 4),
  ),
  "gru": (
    Recurrent(nn.GRUCell(7)),
    SEQUENCES,
    cell("ir", "iz", "in", "hr", "hz", "hn", bias=[1, 1, 1, 0, 0, 1]),
  ),
  "mgu": (
    Recurrent(nn.MGUCell(7)),
    SEQUENCES,
    cell("if", "in", "hf", "hn", bias=[1, 1, 0, 1]),
  ),
  "simple recurrence": (
    Recurrent(nn.SimpleCell(7)),
    SEQUENCES,
    cell("i", "h", bias=[1, 0]),
  ),
  "conv lstm": (
    Recurrent(nn.ConvLSTMCell(7, (3, 3))),
    array(2, 5, 8, 8, 6),
    {"cell/ih/kernel": kernel(0, 1), "cell/hh/kernel": kernel(0, 1)},
  ),
  "weight norm": (
    Wrapped(nn.WeightNorm),
    ROWS,
    {"dense/kernel": dense(0, bias="dense/bias")},
  ),
  "spectral norm": (
    Wrapped(nn.SpectralNorm),
    ROWS,
    {"dense/kernel": dense(0, bias="dense/bias")},
  ),
  "scan": (
    Stack(0),
    ROWS,
    {"layers/Dense_0/kernel": dense(1, stack=(0,), bias="layers/Dense_0/bias")},
  ),
  "scan over axis 1": (
    Stack(1),
    ROWS,
    {"layers/Dense_0/kernel": dense(0, stack=(1,), bias="layers/Dense_0/bias")},
  ),
  "scan, no bias or norm": (
    Stack(2, bare=True),
    ROWS,
    {"layers/Dense_0/kernel": dense(0, stack=(2,))},
  ),
  "ensemble": (
    Ensemble(),
    ROWS,
    {
      f"networks/Dense_{i}/kernel": dense(
        1, stack=(0,), bias=f"networks/Dense_{i}/bias"
      )
      for i in range(2)
    },
  ),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
  layer, x, expected = LINEN[name]
  variables = dict(jax.eval_shape(layer.init, KEY, x))
  params = variables.pop("params")

  def loss(params, state, x):
    variables = {"params": params, **state}
    outputs, state = layer.apply(variables, x, mutable=list(state))
    return size(outputs), state

  check(loss, params, (variables, x), expected)


# Flax NNX.


class NnxStack(nnx.Module):
  """Layers made by vmap and run by scan."""

  def __init__(self, rngs):
    make = nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs))
    self.layers = make(rngs.fork(split=4))

  def __call__(self, x):
    return nnx.scan(
      lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )(x, self.layers)


class NnxRecurrent(nnx.Module):
  def __init__(self, cell):
    self.rnn = nnx.RNN(cell)

  def __call__(self, x):
    return self.rnn(x)


NNX = {
  "linear": (lambda r: nnx.Linear(6, 7, rngs=r), ROWS, {"kernel": BIASED}),
  "general": (
    lambda r: nnx.LinearGeneral((2, 3), 7, axis=(-2, -1), rngs=r),
    HEADS,
    {"kernel": dense(0, 1, bias="bias")},
  ),
  "einsum": (
    lambda r: nnx.Einsum("btd,dhk->bthk", (6, 2, 4), (2, 4), rngs=r),
    SEQUENCES,
    {"kernel": BIASED},
  ),
  "conv": (
    lambda r: nnx.Conv(6, 7, (3, 3), rngs=r),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "transposed": (
    lambda r: nnx.ConvTranspose(6, 7, (3, 3), rngs=r),
    IMAGES,
    {"kernel": kernel(0, 1)},
  ),
  "embedding": (lambda r: nnx.Embed(11, 6, rngs=r), TOKENS, {}),
  "batch norm": (lambda r: nnx.BatchNorm(6, rngs=r), ROWS, {}),
  "attention": (
    lambda r: nnx.MultiHeadAttention(2, 6, decode=False, rngs=r),
    SEQUENCES,
    ATTENTION,
  ),
  "optimized lstm": (
    lambda r: NnxRecurrent(nnx.OptimizedLSTMCell(6, 7, rngs=r)),
    SEQUENCES,
    {
      "rnn/cell/dense_i/kernel": dense(0),
      "rnn/cell/dense_h/kernel": dense(0, bias="rnn/cell/dense_h/bias"),
    },
  ),
  "gru": (
    lambda r: NnxRecurrent(nnx.GRUCell(6, 7, rngs=r)),
    SEQUENCES,
    {
      "rnn/cell/dense_i/kernel": dense(0, bias="rnn/cell/dense_i/bias"),
      "rnn/cell/dense_h/kernel": dense(0),
    },
  ),
  "lora": (
    lambda r: nnx.LoRALinear(6, 7, lora_rank=2, rngs=r),
    ROWS,
    {
      "kernel": BIASED,
      "lora/lora_a": dense(0),
      "lora/lora_b": dense(0),
    },
  ),
  "stack": (
    NnxStack,
    ROWS,
    {"layers/kernel": dense(1, stack=(0,), bias="layers/bias")},
  ),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
  make, x, expected = NNX[name]
  graph, params, rest = nnx.split(
    nnx.eval_shape(lambda: make(nnx.Rngs(0))), (nnx.Param, nnx.LoRAParam), ...
  )

  def loss(params, rest, x):
    return size(nnx.merge(graph, params, rest)(x))

  check(loss, params, (rest, x), expected)


# Haiku.


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
