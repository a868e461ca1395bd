"""The networks of single experiments, in Flax Linen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Sparse(NamedTuple):
  """A sparse matrix by its entries, sorted by row."""

  rows: jax.Array
  columns: jax.Array
  values: jax.Array

  def times(self, dense: jax.Array, height: int) -> jax.Array:
    """The product with a dense matrix; ``height`` is the number of rows."""
    summands = self.values[:, None] * dense[self.columns]
    return jax.ops.segment_sum(summands, self.rows, height, indices_are_sorted=True)


class GraphConvolution(nn.Module):
  """``A X W + b``; what multiplies the kernel is given as functions."""

  inputs: int
  features: int

  @nn.compact
  def __call__(
    self,
    multiply: Callable[[jax.Array], jax.Array],
    propagate: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
    init = nn.initializers.glorot_uniform()
    kernel = self.param("kernel", init, (self.inputs, self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return propagate(multiply(kernel)) + bias[None]


class GraphNetwork(nn.Module):
  """Kipf and Welling's two-layer graph convolutional network.

  Attributes:
    nodes: of the graph.
    words: of the sparse input features.
    classes: of the nodes.
    hidden: width between the layers.
    dropout: share of the features, and of the hidden units, left out in training.
  """

  nodes: int
  words: int
  classes: int
  hidden: int = 16
  dropout: float = 0.5

  @nn.compact
  def __call__(self, features: Sparse, adjacency: Sparse, train: bool) -> jax.Array:
    def propagate(x: jax.Array) -> jax.Array:
      return adjacency.times(x, self.nodes)

    drop = nn.Dropout(self.dropout, deterministic=not train)
    kept = features._replace(values=drop(features.values))
    layer = GraphConvolution(self.words, self.hidden)
    x = nn.relu(layer(lambda kernel: kept.times(kernel, self.nodes), propagate))
    x = drop(x)
    return GraphConvolution(self.hidden, self.classes)(lambda w: x @ w, propagate)
