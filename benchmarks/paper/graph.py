"""A two-layer graph convolutional network on Cora.

Kipf and Welling's setting: 140 training nodes, all at once, dropout and weight decay on
the first layer. Settings are searched by the accuracy on the validation nodes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mbf_optax
from benchmarks.paper import comparison, data, rivals, tables
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.report import plain, table
from benchmarks.paper.search import Search
from benchmarks.paper.studies.following import alignment
from benchmarks.paper.studies.networks import GraphNetwork, Sparse
from benchmarks.paper.tasks import Task

DECAY = 5e-4  # of the first layer, in the loss
MEASURED = 60, 15  # steps, and steps between measurements, of the alignment
METRICS = {
  "test accuracy": "{:.3f}",
  "test loss": "{:.3f}",
  "train loss": "{:.3f}",
}
POINTS = 20
STARTS: dict[str, Setting] = {
  "adam": {"learning_rate": 1e-2, "b2": 0.999},
  "nadam": {"learning_rate": 1e-2, "b2": 0.999},
  "muon": {"learning_rate": 3e-2, "other_learning_rate": 1e-2},
  "soap": {"learning_rate": 1e-2, "b2": 0.95},
  "mbf": {"ratio": 10.0, "damping": 1e-3},
  "mbf_adam": {"learning_rate": 1e-2, "b2": 0.999},
  "mbf_adam, own damping": {"learning_rate": 1e-2, "damping": 0.1},
  "mbf_adam, one side": {"learning_rate": 1e-2, "damping": 0.1},
}
"""Where each method's search begins; behind a comma, a variant."""


class Size(NamedTuple):
  """Steps, seeds of the search and of the results, and who takes part."""

  steps: int
  search_seeds: int
  seeds: int
  optimizers: tuple[str, ...] = tuple(STARTS)
  rounds: int = 6


SIZES = {
  "quick": Size(2, 1, 2, ("adam", "mbf"), rounds=0),
  "cpu": Size(200, 2, 10),
  "paper": Size(200, 10, 100),
}


def run(options: Options) -> Report:
  """Searches and compares the optimizers on Cora."""
  size = SIZES[options.scale]
  task = network_task(data.cora(options), size.steps)
  grids = options.chosen(optimizers(size))
  search = Search("valid accuracy", True, size.search_seeds, size.rounds)
  compared = comparison.experiment(
    options, "graph", {"cora": task}, {"cora": grids}, size.seeds, search, POINTS
  )
  aligned = {}
  for name, grid in grids.items():
    tx = grid.build(**compared["cora"][name]["setting"])
    aligned[name] = alignment(task, tx, *MEASURED)
  return of_record({"compared": compared, "alignment": plain(aligned)})


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record["compared"])
  parts = [
    tables.comparison_section(outcomes["cora"], METRICS),
    tables.protocol(outcomes),
    _alignment_table(record["alignment"]),
  ]
  figures = {
    "loss": tables.comparison_figure(outcomes, ("test accuracy",)),
    "exponents": tables.exponents_figure(outcomes),
  }
  return Report("\n\n".join(parts), dict(record), figures)


def network_task(graph: data.Graph, steps: int) -> Task:
  """Classes of the training nodes, the others held out, all at once each."""
  features, adjacency = sparse_features(graph), normalized_adjacency(graph)
  labels = jnp.asarray(graph.labels)
  nodes, words = graph.features.shape
  model = GraphNetwork(nodes, words, int(graph.labels.max()) + 1)

  def loss(variables: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    logits = model.apply(variables, features, adjacency, True, rngs={"dropout": key})
    first = variables["params"]["GraphConvolution_0"]["kernel"]
    penalty = DECAY / 2 * jnp.sum(first**2)
    return _cross_entropy(logits[batch], labels[batch]) + penalty, {}

  def metrics(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
    logits = model.apply(variables, features, adjacency, False)
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    batch = batch.ravel()
    return {
      "loss": _cross_entropy(logits[batch], labels[batch]),
      "accuracy": right[batch].mean(),
    }

  return Task(
    "cora",
    lambda key: model.init(key, features, adjacency, False),
    loss,
    metrics,
    graph.train,
    graph.validation[None],
    graph.test[None],
    batch_size=len(graph.train),
    steps=steps,
  )


def sparse_features(graph: data.Graph) -> Sparse:
  """Words by node, each node's counts divided by their sum."""
  rows, columns = np.nonzero(graph.features)
  sums = np.maximum(graph.features.sum(1), 1)
  values = graph.features[rows, columns] / sums[rows]
  return Sparse(jnp.asarray(rows), jnp.asarray(columns), jnp.asarray(values))


def normalized_adjacency(graph: data.Graph) -> Sparse:
  """``D^(-1/2) (A + I) D^(-1/2)`` with the degrees ``D`` of ``A + I``."""
  nodes = np.arange(len(graph.labels))
  edges = np.concatenate([graph.edges, graph.edges[:, ::-1]])
  edges = np.concatenate([np.unique(edges, axis=0), np.stack([nodes, nodes], 1)])
  rows, columns = edges[np.lexsort(edges.T[::-1])].T
  degrees = np.bincount(rows)
  values = 1 / np.sqrt(degrees[rows] * degrees[columns])
  values = jnp.asarray(values, jnp.float32)
  return Sparse(jnp.asarray(rows), jnp.asarray(columns), values)


def optimizers(size: Size) -> dict[str, Optimizer]:
  """Each with its settings. The first layer's blocks have 1,434 elements."""
  partitions = {
    "mbf": mbf_optax.flax_partition("low_rank"),
    "mbf_adam, one side": mbf_optax.flax_partition("shared"),
  }
  found = {}
  for name in size.optimizers:
    start = STARTS[name]
    settings = rivals.around(start) if size.rounds else [start]
    fixed = {"partition": partitions[name]} if name in partitions else {}
    if name == "muon":
      fixed["head"] = "GraphConvolution_1"
    found[name] = rivals.optimizer(name.partition(",")[0], settings, **fixed)
  return found


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _alignment_table(aligned: Mapping[str, Any]) -> str:
  layers = list(next(iter(aligned.values()))[0]["update"])
  titles = ["cosine with the mean gradient"]
  for layer in range(1, len(layers) + 1):
    titles += [f"update, layer {layer}", f"gradient, layer {layer}"]
  rows = []
  for name, measured in aligned.items():
    row = [name]
    for layer in layers:
      for kind in ("update", "gradient"):
        row.append(f"{np.mean([found[kind][layer] for found in measured]):.2f}")
    rows.append(row)
  steps, every = MEASURED
  title = (
    "Cosine of the update, and of the gradient that it was made from, with the gradient"
    f" averaged over 16 dropout masks, every {every} of the first {steps} steps:"
  )
  return f"{title}\n\n{table(titles, rows)}"
