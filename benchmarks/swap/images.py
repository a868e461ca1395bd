"""Classification of scikit-learn's digits by networks of several libraries."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import mbf_optax
from benchmarks.swap import data
from benchmarks.swap.problem import Factory, Problem, drawn

_PATCH, _TOKENS, _PIXELS = 2, 16, 4


def perceptron() -> Problem:
  """Two hidden layers at a small batch, Flax Linen."""
  model = Perceptron()

  def init(key: jax.Array) -> Any:
    return model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return model.apply({"params": params}, x)

  return _classification(
    "perceptron, batch 32",
    (1e-3, "Keras' and Adam's own default"),
    (32, 2000),
    init,
    logits,
  )


def large_batch() -> Problem:
  """A perceptron at a batch of 1024, Haiku."""

  def network(x: jax.Array) -> jax.Array:
    return hk.nets.MLP((256, 256, 10))(x.reshape(len(x), -1))

  model = hk.without_apply_rng(hk.transform(network))
  return _classification(
    "perceptron, batch 1024",
    (1e-3, "Keras' and Adam's own default"),
    (1024, 300),
    lambda key: model.init(key, jnp.zeros((1, 8, 8, 1))),
    model.apply,
    mbf_optax.haiku_partition,
  )


def convnet() -> Problem:
  """Three convolutions at the usual rate, Flax Linen."""
  model = Convnet()

  def init(key: jax.Array) -> Any:
    return model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return model.apply({"params": params}, x)

  return _classification(
    "convnet",
    (1e-3, "Keras' and Adam's own default"),
    (64, 500),
    init,
    logits,
    scanned=False,
  )


def convnet_low_rate() -> Problem:
  """Three convolutions at a low rate, Equinox."""
  parts = eqx.partition(EquinoxConvnet(jax.random.key(0)), eqx.is_inexact_array)

  def init(key: jax.Array) -> Any:
    return eqx.filter(EquinoxConvnet(key), eqx.is_inexact_array)

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(eqx.combine(params, parts[1]))(x)

  return _classification(
    "convnet, low rate",
    (1e-4, "usual where a network is fine-tuned or training was unstable"),
    (64, 500),
    init,
    logits,
    mbf_optax.equinox_partition,
    scanned=False,
  )


def vision_transformer() -> Problem:
  """A small ViT, NNX."""
  graph = nnx.split(Vit(nnx.Rngs(0)))[0]

  def init(key: jax.Array) -> Any:
    return nnx.state(Vit(nnx.Rngs(key)))

  def logits(params: Any, x: jax.Array) -> jax.Array:
    return nnx.merge(graph, params)(x)

  return _classification(
    "vision transformer",
    (1e-3, "Dosovitskiy et al., 2021, for small models"),
    (64, 300),
    init,
    logits,
  )


class Perceptron(nn.Module):
  """Widths 256, 256, 10."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.reshape(len(x), -1)
    for _ in range(2):
      x = nn.relu(nn.Dense(256)(x))
    return nn.Dense(10)(x)


class Convnet(nn.Module):
  """Three 3x3 convolutions and a hidden dense layer."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(nn.Conv(16, (3, 3))(x))
    x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(32, (3, 3))(x))
    x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


class EquinoxConvnet(eqx.Module):
  """The same in Equinox, channels first, for one image."""

  convolutions: list[eqx.nn.Conv2d]
  dense: list[eqx.nn.Linear]

  def __init__(self, key: jax.Array):
    keys = jax.random.split(key, 5)
    shapes = ((1, 16, 1), (16, 32, 2), (32, 32, 1))
    self.convolutions = [
      eqx.nn.Conv2d(inputs, outputs, 3, stride, padding=1, key=k)
      for (inputs, outputs, stride), k in zip(shapes, keys, strict=False)
    ]
    self.dense = [
      eqx.nn.Linear(512, 64, key=keys[3]),
      eqx.nn.Linear(64, 10, key=keys[4]),
    ]

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, -1, 0)
    for layer in self.convolutions:
      x = jax.nn.relu(layer(x))
    hidden, last = self.dense
    return last(jax.nn.relu(hidden(x.ravel())))


class VitBlock(nnx.Module):
  """Pre-norm self-attention and a two-layer perceptron."""

  def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
    self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
    self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
    self.up = nnx.Linear(width, 2 * width, rngs=rngs)
    self.down = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attention(self.norms[0](x))
    return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Vit(nnx.Module):
  """Patches of 2x2 pixels, learned positions, two blocks, the mean of all tokens."""

  def __init__(self, rngs: nnx.Rngs, width: int = 48):
    self.patches = nnx.Linear(_PIXELS, width, rngs=rngs)
    start = 0.02 * jax.random.normal(rngs.params(), (_TOKENS, width))
    self.positions = nnx.Param(start)
    self.blocks = nnx.List([VitBlock(width, 4, rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.reshape(len(x), 4, _PATCH, 4, _PATCH).swapaxes(2, 3)
    x = self.patches(x.reshape(len(x), _TOKENS, _PIXELS)) + self.positions[None]
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(1))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The mean cross-entropy of integer labels."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _classification(
  name: str,
  rate: tuple[float, str],
  size: tuple[int, int],
  init: Callable[[jax.Array], Any],
  logits: Callable[[Any, jax.Array], jax.Array],
  partition: Factory | None = None,
  scanned: bool = True,
) -> Problem:
  """Digits by their classes; ``size`` is the batch's and the training's length."""
  split = data.digits()
  return Problem(
    name,
    *rate,
    steps=size[1],
    init=init,
    loss=lambda params, batch, key: cross_entropy(logits(params, batch[0]), batch[1]),
    batch=drawn(split.train, size[0]),
    held_out=lambda params: cross_entropy(logits(params, split.test[0]), split.test[1]),
    partition=partition,
    scanned=scanned,
  )
