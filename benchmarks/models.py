"""The networks of the paper's experiments, and a transformer, in Flax Linen."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

MNIST_WIDTHS = (1000, 500, 250, 30, 250, 500, 1000, 784)
FACES_WIDTHS = (2000, 1000, 500, 30, 500, 1000, 2000, 625)
CURVES_WIDTHS = (400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)


class Autoencoder(nn.Module):
  """Dense layers with ReLU everywhere but at the code and the output (Table 6)."""

  widths: Sequence[int] = MNIST_WIDTHS

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    code = len(self.widths) // 2 - 1
    for i, width in enumerate(self.widths):
      x = nn.Dense(width)(x)
      if i not in (code, len(self.widths) - 1):
        x = nn.relu(x)
    return x


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions and the parameter-free shortcut of He et al., option A."""

  channels: int
  strides: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.Conv(self.channels, (3, 3), self.strides, use_bias=False)(x)
    y = nn.relu(nn.BatchNorm(not train, momentum=0.9)(y))
    y = nn.Conv(self.channels, (3, 3), use_bias=False)(y)
    y = nn.BatchNorm(not train, momentum=0.9)(y)
    shortcut = x[:, :: self.strides, :: self.strides]
    missing = self.channels - x.shape[-1]
    shortcut = jnp.pad(
      shortcut, [(0, 0)] * 3 + [(missing // 2, missing - missing // 2)]
    )
    return nn.relu(y + shortcut)


class ResNet(nn.Module):
  """The CIFAR ResNets of He et al. (2016), Table 6: depth ``6 n + 2``."""

  depth: int = 32
  classes: int = 10
  width: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
    for stage in range(3):
      for block in range((self.depth - 2) // 6):
        strides = 2 if stage and not block else 1
        x = ResidualBlock(self.width * 2**stage, strides)(x, train)
    return nn.Dense(self.classes)(x.mean((1, 2)))


class PlainConvnet(nn.Module):
  """Four convolutions of one width and kernel size."""

  channels: int
  kernel: int
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for _ in range(4):
      x = nn.relu(nn.Conv(self.channels, (self.kernel, self.kernel))(x))
    return nn.Dense(self.classes)(x.mean((1, 2)))


VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


class VGG(nn.Module):
  """Simonyan and Zisserman's networks with batch norm after every convolution."""

  stages: Sequence[Sequence[int]] = VGG16
  classes: int = 100
  hidden: int = 4096

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    for stage in self.stages:
      for channels in stage:
        x = nn.Conv(channels, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for _ in range(2):
      x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.classes)(x)


class TransformerBlock(nn.Module):
  """Pre-norm causal self-attention and a two-layer perceptron."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    mask = nn.make_causal_mask(x[..., 0])
    y = nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
    x = x + y
    y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))
    return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class Transformer(nn.Module):
  """A causal language model over a small vocabulary.

  Attributes:
    dtype: what embeddings become before the first block; ``None`` keeps theirs.
  """

  vocabulary: int = 65
  width: int = 256
  layers: int = 4
  heads: int = 4
  dtype: jax.typing.DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    positions = jnp.arange(tokens.shape[-1])
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    x = x + nn.Embed(tokens.shape[-1], self.width, name="positions")(positions)
    x = x.astype(self.dtype or x.dtype)
    for _ in range(self.layers):
      x = TransformerBlock(self.heads)(x)
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
