"""Classes of the nodes of a citation graph, all at once."""

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.data import Graph
from benchmarks.swap import data
from benchmarks.swap.images import cross_entropy
from benchmarks.swap.problem import Problem

_DECAY = 5e-4  # of the first layer, in the loss, as Kipf and Welling have it


class Sparse(NamedTuple):
  """A matrix by its entries, in the order of their rows."""

  rows: jax.Array
  columns: jax.Array
  values: jax.Array

  def times(self, dense: jax.Array, height: int) -> jax.Array:
    """The product with a dense matrix; ``height`` is the number of rows."""
    summands = self.values[:, None] * dense[self.columns]
    return jax.ops.segment_sum(summands, self.rows, height, indices_are_sorted=True)


def citations(folder: pathlib.Path | None) -> Problem:
  """Kipf and Welling's two-layer graph convolutional network, Flax Linen."""
  graph, note = data.citations(folder)
  nodes, words = graph.features.shape
  model = GraphNetwork(nodes, words, int(graph.labels.max()) + 1)
  counts, neighbors = _counts(graph), _neighbors(graph)
  labels = jnp.asarray(graph.labels)

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    del batch
    logits = model.apply(
      {"params": params}, counts, neighbors, True, rngs={"dropout": key}
    )
    penalty = _DECAY / 2 * jnp.sum(params["first"]["kernel"] ** 2)
    return cross_entropy(logits[graph.train], labels[graph.train]) + penalty

  def held_out(params: Any) -> jax.Array:
    logits = model.apply({"params": params}, counts, neighbors, False)
    return cross_entropy(logits[graph.test], labels[graph.test])

  return Problem(
    "graph network, full batch",
    0.01,
    "Kipf and Welling, 2017",
    steps=200,
    init=lambda key: model.init(key, counts, neighbors, False)["params"],
    loss=loss,
    batch=lambda step, key: (),
    held_out=held_out,
    note=note,
  )


class SparseDense(nn.Module):
  """A dense layer of sparse inputs."""

  inputs: int
  outputs: int

  @nn.compact
  def __call__(self, x: Sparse, height: int) -> jax.Array:
    shape = self.inputs, self.outputs
    kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
    return x.times(kernel, height) + bias[None]


class GraphNetwork(nn.Module):
  """Two layers, 16 hidden features, half of the inputs of each left out."""

  nodes: int
  words: int
  classes: int

  @nn.compact
  def __call__(self, counts: Sparse, neighbors: Sparse, train: bool) -> jax.Array:
    drop = nn.Dropout(0.5, deterministic=not train)
    kept = counts._replace(values=drop(counts.values))
    x = SparseDense(self.words, 16, name="first")(kept, self.nodes)
    x = drop(nn.relu(neighbors.times(x, self.nodes)))
    return neighbors.times(nn.Dense(self.classes, name="second")(x), self.nodes)


def _counts(graph: Graph) -> Sparse:
  """Words by node, each node's counts over their sum."""
  rows, columns = np.nonzero(graph.features)
  sums = graph.features.sum(1)
  values = graph.features[rows, columns] / sums[rows]
  return Sparse(*map(jnp.asarray, (rows, columns, values)))


def _neighbors(graph: Graph) -> Sparse:
  """``D^(-1/2) (A + I) D^(-1/2)`` with the degrees ``D`` of ``A + I``."""
  nodes = np.arange(len(graph.labels))
  edges = np.concatenate([graph.edges, graph.edges[:, ::-1]])
  edges = np.concatenate([np.unique(edges, axis=0), np.stack([nodes, nodes], 1)])
  rows, columns = edges[np.lexsort(edges.T[::-1])].T
  degrees = np.bincount(rows)
  values = (1 / np.sqrt(degrees[rows] * degrees[columns])).astype(np.float32)
  return Sparse(*map(jnp.asarray, (rows, columns, values)))
