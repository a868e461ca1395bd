"""A two-layer graph convolutional network on Cora: Adam, muon, MBF and mbf_adam.

Kipf and Welling's setting: 140 training nodes, all at once, dropout and weight decay on
the first layer. Settings are searched by the accuracy on the validation nodes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

import mbf_optax
from benchmarks.paper import data
from benchmarks.paper.comparison import (
  Curve,
  Outcome,
  Session,
  on_grid_edge,
  session,
)
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.report import axes, colors, curve, describe, spread, table
from benchmarks.paper.studies.following import Alignment, alignment
from benchmarks.paper.studies.networks import GraphNetwork, Sparse
from benchmarks.paper.tasks import Task

DECAY = 5e-4  # of the first layer, in the loss
VALIDATION = "test validation accuracy"
MEASURED = 60, 15  # steps, and steps between measurements, of the alignment
RATES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
MBF_RATES = (1e-4, 1e-3, 0.01, 0.1)
DAMPINGS = (1e-5, 1e-4, 1e-3, 0.01, 0.1)
RELATIVE_DAMPINGS = (0.1, 1.0)  # of mbf_adam, whose default is the first


class Size(NamedTuple):
  """Steps, seeds of the search and of the results, grids, and who takes part."""

  steps: int
  search_seeds: int
  seeds: int
  rates: tuple[float, ...]
  dampings: tuple[float, ...]
  optimizers: tuple[str, ...] = (
    "adam",
    "muon",
    "mbf",
    "mbf_adam",
    "mbf_adam, own damping",
    "mbf_adam, one side",
  )


SIZES = {
  "quick": Size(2, 1, 2, RATES[:2], DAMPINGS[:1], ("adam", "mbf")),
  "cpu": Size(200, 2, 5, RATES, DAMPINGS),
  "paper": Size(200, 10, 100, (3e-4, *RATES), DAMPINGS),
}


def run(options: Options) -> Report:
  """Searches and compares the optimizers on Cora."""
  size = SIZES[options.scale]
  graph = data.cora(options)
  task = network_task(graph, size.steps)
  grids = {name: optimizers(size)[name] for name in size.optimizers}
  settings = sum(len(optimizer.settings) for optimizer in grids.values())
  runs = size.steps * (settings * size.search_seeds + len(grids) * size.seeds)
  with session(options, "graph", runs) as opened:
    outcomes = {
      name: _outcome(opened, name, optimizer, task, size)
      for name, optimizer in grids.items()
    }
  aligned = {
    name: alignment(task, grids[name].build(**outcome.setting), *MEASURED)
    for name, outcome in outcomes.items()
  }
  parts = [_table(outcomes), _search_table(outcomes), _alignment_table(aligned)]
  record = {
    name: {
      "setting": outcome.setting,
      "grid edge": on_grid_edge(outcome),
      "search": _mean_accuracy(outcome),
      "metrics": {metric: v[0] for metric, v in outcome.runs.metrics.items()},
      "alignment": aligned[name],
    }
    for name, outcome in outcomes.items()
  }
  return Report("\n\n".join(parts), record, {"graph": _figure(outcomes)})


def network_task(graph: data.Graph, steps: int) -> Task:
  """Classes of the training nodes, the test nodes held out, all at once each.

  The metrics have the accuracy on the validation nodes as well.
  """
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
      "validation accuracy": right[graph.validation].mean(),
    }

  return Task(
    "cora",
    lambda key: model.init(key, features, adjacency, False),
    loss,
    metrics,
    graph.train,
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
  """Each with its grid. The first layer's blocks have 1,434 elements."""
  rates = [{"learning_rate": rate} for rate in size.rates]
  relative = _pairs(size.rates[1:-2], RELATIVE_DAMPINGS)
  low_rank = mbf_optax.flax_partition("low_rank")
  shared = mbf_optax.flax_partition("shared")
  return {
    "adam": Optimizer(optax.adam, rates),
    "muon": Optimizer(optax.contrib.muon, rates),
    "mbf": Optimizer(
      functools.partial(mbf_optax.mbf, partition=low_rank),
      _pairs(MBF_RATES, size.dampings),
    ),
    "mbf_adam": Optimizer(mbf_optax.mbf_adam, rates),
    "mbf_adam, own damping": Optimizer(mbf_optax.mbf_adam, relative),
    "mbf_adam, one side": Optimizer(
      functools.partial(mbf_optax.mbf_adam, partition=shared), relative
    ),
  }


def _pairs(
  rates: tuple[float, ...], dampings: tuple[float, ...]
) -> list[dict[str, float]]:
  return [
    {"learning_rate": rate, "damping": damping}
    for rate in rates
    for damping in dampings
  ]


def _outcome(
  opened: Session, name: str, optimizer: Optimizer, task: Task, size: Size
) -> Outcome:
  """The search by accuracy on the validation nodes, and runs with the best setting."""
  searched = opened.train(
    f"{name} search", task, optimizer, seeds=range(size.search_seeds), points=1
  )
  setting = optimizer.settings[searched.best(VALIDATION, largest=True)]
  seeds = range(100, 100 + size.seeds)
  runs = opened.train(
    f"{name} seeds", task, optimizer, settings=[setting], seeds=seeds, points=20
  )
  return Outcome(searched, runs, float("nan"), Curve.of(runs))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _mean_accuracy(outcome: Outcome) -> list[dict[str, float]]:
  accuracy = outcome.search.final(VALIDATION).mean(-1)
  return [
    {**setting, "validation accuracy": value}
    for setting, value in zip(outcome.search.settings, accuracy, strict=True)
  ]


def _table(outcomes: dict[str, Outcome]) -> str:
  titles = ["optimizer", "setting", "at the grid's edge", "training loss"]
  titles += ["validation accuracy", "test accuracy", "test loss"]
  rows = []
  for name, outcome in outcomes.items():
    rows.append(
      [
        name,
        describe(outcome.setting),
        ", ".join(on_grid_edge(outcome)),
        spread(outcome.runs.final("train loss"), "{:.3f}"),
        spread(100 * outcome.runs.final(VALIDATION), "{:.1f}"),
        spread(100 * outcome.runs.final("test accuracy"), "{:.1f}"),
        spread(outcome.runs.final("test loss"), "{:.3f}"),
      ]
    )
  return table(titles, rows)


def _search_table(outcomes: dict[str, Outcome]) -> str:
  titles = ["mbf_adam's damping", *map("{:g}".format, RELATIVE_DAMPINGS)]
  rows = []
  for name, outcome in outcomes.items():
    if name.startswith("mbf_adam,"):
      found = _mean_accuracy(outcome)
      best = [
        max(f["validation accuracy"] for f in found if f["damping"] == damping)
        for damping in RELATIVE_DAMPINGS
      ]
      rows.append([name, *(f"{100 * value:.1f}" for value in best)])
  title = "Validation accuracy in the search, by damping at the best rate:"
  return f"{title}\n\n{table(titles, rows)}"


def _alignment_table(aligned: dict[str, list[Alignment]]) -> str:
  layers = list(next(iter(aligned.values()))[0].update)
  titles = ["cosine with the mean gradient"]
  for layer in range(1, len(layers) + 1):
    titles += [f"update, layer {layer}", f"gradient, layer {layer}"]
  rows = []
  for name, measured in aligned.items():
    row = [name]
    for layer in layers:
      for kind in ("update", "gradient"):
        values = [getattr(found, kind)[layer] for found in measured]
        row.append(f"{np.mean(values):.2f}")
    rows.append(row)
  steps, every = MEASURED
  title = (
    "Cosine of the update, and of the gradient that it was made from, with the gradient"
    f" averaged over 16 dropout masks, every {every} of the first {steps} steps:"
  )
  return f"{title}\n\n{table(titles, rows)}"


def _figure(outcomes: dict[str, Outcome]) -> matplotlib.figure.Figure:
  figure, grid = axes(1, 2, width=4.2)
  chosen = colors(outcomes)
  for name, outcome in outcomes.items():
    style = {"label": name, "color": chosen[name]}
    losses = outcome.runs.losses[0]
    curve(grid[0, 0], np.arange(losses.shape[-1]), losses, **style)
    accuracy = 100 * outcome.runs.metrics["test accuracy"][0]
    curve(grid[0, 1], outcome.runs.at, accuracy, **style)
  grid[0, 0].set(xlabel="steps", ylabel="training loss with dropout and decay")
  grid[0, 1].set(xlabel="steps", ylabel="test accuracy, %", ylim=(60, 85))
  grid[0, 0].legend(frameon=False, fontsize=8)
  return figure
