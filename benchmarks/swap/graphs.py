"""Classes of the nodes of a citation graph, all at once."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.data import Graph
from benchmarks.swap import data
from benchmarks.swap.images import cross_entropy
from benchmarks.swap.problem import Problem

_DECAY = 5e-4  # of the first layer, in the loss, as Kipf and Welling have it


def citations(folder: pathlib.Path | None) -> Problem:
  """Kipf and Welling's two-layer graph convolutional network, Flax Linen."""
  graph, note = data.citations(folder)
  model = GraphNetwork(int(graph.labels.max()) + 1)
  words = graph.features / np.maximum(graph.features.sum(1, keepdims=True), 1)
  words, neighbors = jnp.asarray(words), _neighbors(graph)
  labels = jnp.asarray(graph.labels)

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    del batch
    logits = model.apply(
      {"params": params}, words, neighbors, True, rngs={"dropout": key}
    )
    penalty = _DECAY / 2 * jnp.sum(params["first"]["kernel"] ** 2)
    return cross_entropy(logits[graph.train], labels[graph.train]) + penalty

  def held_out(params: Any) -> jax.Array:
    logits = model.apply({"params": params}, words, neighbors, False)
    return cross_entropy(logits[graph.test], labels[graph.test])

  return Problem(
    "graph network, full batch",
    0.01,
    "Kipf and Welling, 2017",
    steps=200,
    init=lambda key: model.init(key, words, neighbors, False)["params"],
    loss=loss,
    batch=lambda step, key: (),
    held_out=held_out,
    note=note,
  )


class GraphNetwork(nn.Module):
  """Two layers, 16 hidden features, half of the inputs of each left out."""

  classes: int

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    neighbors: tuple[jax.Array, jax.Array, jax.Array],
    train: bool,
  ) -> jax.Array:
    rows, columns, weights = neighbors

    def mean(x: jax.Array) -> jax.Array:
      return jax.ops.segment_sum(weights[:, None] * x[columns], rows, len(x))

    drop = nn.Dropout(0.5, deterministic=not train)
    x = nn.relu(mean(nn.Dense(16, name="first")(drop(x))))
    return mean(nn.Dense(self.classes, name="second")(drop(x)))


def _neighbors(graph: Graph) -> tuple[jax.Array, jax.Array, jax.Array]:
  """``D^(-1/2) (A + I) D^(-1/2)`` by rows, columns and weights."""
  nodes = np.arange(len(graph.labels))
  edges = np.concatenate([graph.edges, graph.edges[:, ::-1]])
  edges = np.concatenate([np.unique(edges, axis=0), np.stack([nodes, nodes], 1)])
  rows, columns = edges.T
  degrees = np.bincount(rows)
  weights = (1 / np.sqrt(degrees[rows] * degrees[columns])).astype(np.float32)
  return jnp.asarray(rows), jnp.asarray(columns), jnp.asarray(weights)
