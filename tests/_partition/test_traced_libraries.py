"""Where the presets are right, tracing the loss arrives at the same readings.

Libraries without a preset are read against axes that are written down here.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.example_libraries import stax
from penzai import pz
from penzai.models import simple_mlp

import mbf_optax

pytestmark = pytest.mark.promotes

KEY = jax.random.key(0)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
SEQUENCE = jax.ShapeDtypeStruct((2, 5, 6), jnp.float32)


def weights(readings):
  """What the readings of blocks are: axes, estimator and bias, by path."""
  return {
    r.path: (r.layer.block_axes, r.layer.stack_axes, r.layer.estimator, r.bias_path)
    for r in readings
    if not r.layer.elementwise
  }


def check_agreement(preset, loss, params, *args, least=1):
  """Tracing and the preset read the same blocks, and the same elementwise kinds."""
  traced = mbf_optax.traced_partition(loss, params, *args)
  expected = preset(params)
  assert weights(traced(params)) == weights(expected)
  assert len(weights(expected)) >= least
  kinds = {r.path: r.layer.estimator for r in traced(params)}
  assert kinds == {r.path: r.layer.estimator for r in expected}
  assert traced.unread == ()


class Convolutions(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    x = nn.BatchNorm(use_running_average=False)(x)
    x = nn.Conv(5, (1, 1))(x)
    x = nn.Conv(10, (3, 3), feature_group_count=5, use_bias=False)(x)
    x = nn.GroupNorm(5)(nn.max_pool(x, (2, 2), (2, 2)))
    x = nn.ConvTranspose(4, (3, 3), (2, 2))(x)
    x = nn.Conv(4, (5, 5), kernel_dilation=2)(x)
    x = x.reshape(len(x), -1)
    return nn.Dense(3)(nn.LayerNorm()(nn.Dense(6, use_bias=False)(x)))


class Attention(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(11, 8)(tokens)
    x = x + self.param("position", nn.initializers.zeros, (5, 8))
    for _ in range(2):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(y, y)
      x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
    return nn.Dense(11)(nn.Dropout(0.1, deterministic=True)(x))


class Recurrent(nn.Module):
  cell: type

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(self.cell(7))(x)[:, -1])


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    y = nn.relu(nn.Dense(6)(nn.LayerNorm()(x)))
    return x + nn.Dense(6)(y), None


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    lifted = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=4,
    )
    return nn.Dense(2)(lifted()(x, None)[0])


LINEN = {
  "convolutions": (Convolutions(), IMAGES, 6),
  "attention": (Attention(), TOKENS, 13),
  "lstm": (Recurrent(nn.LSTMCell), SEQUENCE, 9),
  "gru": (Recurrent(nn.GRUCell), SEQUENCE, 7),
  "mgu": (Recurrent(nn.MGUCell), SEQUENCE, 5),
  "simple": (Recurrent(nn.SimpleCell), SEQUENCE, 3),
  "scan of remat": (Scanned(), SEQUENCE, 3),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
  model, x, least = LINEN[name]
  variables = jax.eval_shape(model.init, KEY, x)
  params = variables.pop("params")

  def loss(params, x):
    y, state = model.apply({"params": params, **_zeros(variables)}, x, mutable=True)
    return jnp.mean(y**2), state

  check_agreement(mbf_optax.flax_partition(), loss, params, x, least=least)


def _zeros(shapes):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.batch_norm = nnx.BatchNorm(4, rngs=rngs)
    self.pointwise = nnx.Conv(4, 6, (1, 1), rngs=rngs)
    self.norm = nnx.LayerNorm(6, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
    self.rnn = nnx.RNN(nnx.GRUCell(6, 5, rngs=rngs))
    self.head = nnx.Linear(5, 2, rngs=rngs)

  def __call__(self, x):
    x = self.pointwise(nnx.relu(self.batch_norm(self.conv(x))))
    x = x.reshape(len(x), -1, 6)
    return self.head(self.rnn(x + self.attention(self.norm(x)))[:, -1])


def test_nnx():
  model = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def loss(params, rest, x):
    return jnp.mean(nnx.merge(graph, params, rest)(x) ** 2)

  args = (params, rest, IMAGES)
  check_agreement(mbf_optax.flax_partition(), loss, *args, least=9)


def haiku_model(x):
  x = hk.Conv2D(4, 3, name="conv")(x)
  x = jax.nn.relu(hk.LayerNorm(-1, True, True, name="norm")(x))
  x = hk.DepthwiseConv2D(2, 3, name="depthwise")(x)
  x = hk.Conv2D(5, 1, name="pointwise")(x)
  x = hk.Linear(6, name="dense")(hk.Flatten()(x))
  x = jnp.concatenate([x, hk.Embed(7, 6, name="embed")(jnp.zeros(2, jnp.int32))])
  lstm = hk.LSTM(6, name="lstm")
  x, _ = hk.dynamic_unroll(lstm, x[:, None], lstm.initial_state(1))
  return hk.Linear(3, with_bias=False, name="head")(x)


def test_haiku():
  model = hk.without_apply_rng(hk.transform(haiku_model))
  params = jax.eval_shape(model.init, KEY, IMAGES)

  def loss(params, x):
    return jnp.mean(model.apply(params, x) ** 2)

  check_agreement(mbf_optax.haiku_partition(), loss, params, IMAGES, least=6)


class Equinox(eqx.Module):
  conv: eqx.nn.Conv2d
  norm: eqx.nn.LayerNorm
  pointwise: eqx.nn.Conv2d
  attention: eqx.nn.MultiheadAttention
  dense: eqx.nn.Linear
  head: eqx.nn.Linear
  embedding: eqx.nn.Embedding

  def __init__(self, key):
    self.conv = eqx.nn.Conv2d(3, 4, 3, key=key)
    self.norm = eqx.nn.LayerNorm(6)
    self.pointwise = eqx.nn.Conv2d(4, 6, 1, key=key)
    self.attention = eqx.nn.MultiheadAttention(2, 6, key=key)
    self.dense = eqx.nn.Linear(6, 5, key=key)
    self.head = eqx.nn.Linear(5, 2, False, key=key)
    self.embedding = eqx.nn.Embedding(7, 6, key=key)

  def __call__(self, x):
    x = self.pointwise(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))))
    x = x.reshape(6, -1).T + self.embedding(jnp.array(1))
    x = jax.vmap(self.norm)(x)
    x = self.attention(x, x, x).mean(0)
    return self.head(jax.nn.relu(self.dense(x)))


def test_equinox():
  model = eqx.filter_eval_shape(Equinox, KEY)

  def is_array(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)

  params, static = eqx.partition(model, is_array)

  def loss(params, x):
    return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

  check_agreement(mbf_optax.equinox_partition(), loss, params, IMAGES, least=8)


def test_stax():
  layers = [stax.Conv(4, (3, 3), padding="SAME"), stax.BatchNorm(), stax.Relu]
  layers += [stax.MaxPool((2, 2), (2, 2)), stax.Flatten, stax.Dense(5), stax.Tanh]
  init, apply = stax.serial(*layers, stax.Dense(2))
  params = jax.eval_shape(lambda key: init(key, (2, 8, 8, 3))[1], KEY)

  def loss(params, x):
    return jnp.mean(apply(params, x) ** 2)

  traced = mbf_optax.traced_partition(loss, params, IMAGES)
  assert traced.unread == ()
  assert weights(traced(params)) == {
    "0/0": ((0, 1), (), "auto", None),
    "5/0": ((0,), (), "auto", "5/1"),
    "7/0": ((0,), (), "auto", "7/1"),
  }


def test_penzai():
  model = simple_mlp.MLP.from_config(
    name="mlp", init_base_rng=KEY, feature_sizes=[6, 8, 3]
  )
  network, params = pz.unbind_params(model, freeze=True)

  def loss(params, x):
    named = pz.nx.wrap(x).tag("batch", "features")
    outputs = pz.bind_variables(network, params)(named)
    return jnp.mean(outputs.unwrap("batch", "features") ** 2)

  traced = mbf_optax.traced_partition(loss, params, jnp.ones((4, 6)))
  assert traced.unread == ()
  assert weights(traced(params)) == {
    f"{i}/value/data_array": ((0,), (), "auto", f"{i + 1}/value/data_array")
    for i in (0, 2)
  }
