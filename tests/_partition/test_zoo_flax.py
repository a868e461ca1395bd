"""A zoo of Flax layers, Linen and NNX: what each is read as, written down by hand.

Every entry is a layer, its input, and the readings of the arrays that have blocks:
block axes, stacked axes, estimator, and the bias that joins. All other arrays are read
element by element, in silence unless the entry says that they are named.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests._partition.traced import array
from tests._partition.zoo import (
  HEADS,
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
    {"kernel": kernel(0, 1, 2)},
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
    {"kernel": kernel(0, 1)},
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
