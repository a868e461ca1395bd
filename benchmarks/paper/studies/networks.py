"""The networks of single experiments, in Flax Linen."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class SmallNetwork(nn.Module):
  """Martens and Grosse's 256-20-20-20-20-20-10 with tanh.

  The first layer's bias is the weight of a constant input, so that the layer is one
  matrix.
  """

  widths: Sequence[int] = (20, 20, 20, 20, 20, 10)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    del train
    x = x.reshape(len(x), -1)
    x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    x = nn.Dense(self.widths[0], use_bias=False)(x)
    for width in self.widths[1:]:
      x = nn.Dense(width)(nn.tanh(x))
    return x


class SimpleCnn(nn.Module):
  """Shallue et al.'s Simple CNN: two 5x5 convolutions with max pooling, two dense.

  It keeps what is needed for the examples' gradients of its convolutions: their inputs
  in the collection ``intermediates``, the derivatives with respect to their outputs by
  way of the collection ``perturbations``.
  """

  channels: Sequence[int] = (32, 64)
  hidden: int = 1024
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    del train
    for i, channels in enumerate(self.channels):
      self.sow("intermediates", f"input_{i}", x)
      x = self.perturb(f"output_{i}", nn.Conv(channels, (5, 5))(x))
      x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
    x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
    return nn.Dense(self.classes)(x)


class Gru(nn.Module):
  """A language model of one or more gated recurrent layers."""

  vocabulary: int = 65
  width: int = 256
  layers: int = 1

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    for _ in range(self.layers):
      x = nn.RNN(nn.GRUCell(self.width))(x)
    return nn.Dense(self.vocabulary)(x)


class SparseFeatures(nn.Module):
  """``X W`` of a sparse ``X`` with dropout on its entries, by rows.

  Attributes:
    features: width of the output.
    dropout: share of the entries of ``X`` that a training step leaves out.
  """

  features: int
  dropout: float

  @nn.compact
  def __call__(
    self,
    rows: jax.Array,
    columns: jax.Array,
    values: jax.Array,
    shape: tuple[int, int],
    train: bool,
  ) -> jax.Array:
    init = nn.initializers.glorot_uniform()
    kernel = self.param("kernel", init, (shape[1], self.features))
    values = nn.Dropout(self.dropout, deterministic=not train)(values)
    summands = values[:, None] * kernel[columns]
    return jax.ops.segment_sum(summands, rows, shape[0], indices_are_sorted=True)
