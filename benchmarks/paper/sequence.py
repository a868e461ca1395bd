"""Character models of tiny-shakespeare: a transformer and a GRU.

The paper names recurrent networks and transformers as what it did not try. Every method
at its best, with decoupled decay and a rate that rises over the first tenth of the
steps and falls to zero along a cosine.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import mbf_optax
from benchmarks.models import Transformer
from benchmarks.paper import comparison, data, problems, rivals, tables, tasks
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.report import table
from benchmarks.paper.search import Search
from benchmarks.paper.studies.networks import Gru

METRICS = {"test loss": "{:.3f}", "train loss": "{:.3f}", "test accuracy": "{:.1%}"}
POINTS = 6
STARTS: dict[str, Setting] = {
  "adam": {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3},
  "nadam": {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3},
  "muon": {
    "learning_rate": 3e-2,
    "other_learning_rate": 3e-2,
    "b2": 0.95,
    "beta": 0.95,
    "shrinkage": 1e-3,
  },
  "soap": {"learning_rate": 1e-2, "b2": 0.95, "shrinkage": 1e-3},
  "shampoo on adam": {"learning_rate": 1e-2, "damping": 1e-4, "shrinkage": 1e-3},
  "mbf": {"ratio": 1.0, "damping": 1e-5, "shrinkage": 1e-3},
  "mbf_adam": {"learning_rate": 1e-2, "b2": 0.99, "shrinkage": 1e-3},
  "mbf_adam, two rates": {
    "learning_rate": 1e-2,
    "other_learning_rate": 3e-2,
    "b2": 0.95,
    "curvature_ema": 0.95,
    "shrinkage": 1e-3,
  },
}
"""Where each method's search begins."""
REFERENCES = ("mbf_adam, two rates", "mbf_adam", "mbf")


class Size(NamedTuple):
  """The networks, the windows of text, how long, and who takes part."""

  width: int
  layers: int
  heads: int
  length: int
  batch: int
  steps: int
  seeds: int
  networks: tuple[str, ...] = ("transformer", "gru")
  optimizers: tuple[str, ...] = tuple(STARTS)
  rounds: int = 6


SIZES = {
  "quick": Size(8, 1, 2, 8, 4, 3, 2, ("gru",), ("adam", "mbf_adam"), rounds=0),
  "cpu": Size(64, 2, 4, 32, 16, 300, 5),
  "paper": Size(256, 4, 4, 256, 64, 5_000, 5),
}


def run(options: Options) -> Report:
  """Both networks with every optimizer."""
  size = SIZES[options.scale]
  text = data.text(options)
  networks = _networks(len(text.vocabulary), size)
  found = {name: _task(name, networks[name], text, size) for name in size.networks}
  grids = dict.fromkeys(found, optimizers(size))
  search = Search(seeds=problems.SEARCH_SEEDS[options.scale], rounds=size.rounds)
  return of_record(
    comparison.experiment(options, "sequence", found, grids, size.seeds, search, POINTS)
  )


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  outcomes = comparison.of_tasks(record)
  parts = [tables.sections(outcomes, METRICS, REFERENCES)]
  parts.append(f"How the GRU is read:\n\n{_readings()}")
  figures = {
    "loss": tables.comparison_figure(outcomes, ("test loss",)),
    "exponents": tables.exponents_figure(outcomes),
  }
  return Report("\n\n".join(parts), dict(record), figures)


def optimizers(size: Size) -> dict[str, Optimizer]:
  """The methods, each with the settings around the start of its search."""
  scheduled = functools.partial(_scheduled, size.steps)
  found = {}
  for name in size.optimizers:
    has_head = "other_learning_rate" in STARTS[name]
    fixed = {"head": "Dense_0"} if has_head else {}
    settings = rivals.around(STARTS[name]) if size.rounds else [STARTS[name]]
    found[name] = rivals.optimizer(name, settings, scheduled=scheduled, **fixed)
  return found


def _scheduled(steps: int, build: rivals.Build) -> rivals.Build:
  """``build`` with every rate on the schedule of this experiment."""

  def schedule(rate: jax.Array, count: jax.Array) -> jax.Array:
    shape = optax.warmup_cosine_decay_schedule(0, 1, max(1, steps // 10), steps)
    return rate * shape(count + 1)

  return rivals.with_schedule(build, schedule)


def _networks(vocabulary: int, size: Size) -> dict[str, nn.Module]:
  transformer = Transformer(vocabulary, size.width, size.layers, size.heads)
  return {"transformer": transformer, "gru": Gru(vocabulary, size.width)}


def _task(name: str, network: nn.Module, text: data.Text, size: Size) -> tasks.Task:
  """Windows of the text; metrics of 1,000 of them."""
  shape = size.batch, size.steps, size.length
  task = tasks.language(name, network, text.train, text.test, *shape)
  return dataclasses.replace(task, evaluated=1_000)


def _readings() -> str:
  """Of a small GRU, whose layers are read as those of a large one are."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  network = Gru(vocabulary=65, width=64)
  params = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
  rows = [
    [layer.path, layer.shape, layer.reading, layer.blocks, layer.block_size]
    for layer in mbf_optax.summarize(params).layers
  ]
  return table(["weights", "shape", "reading", "blocks", "size"], rows)
