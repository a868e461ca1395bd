"""Character models of tiny-shakespeare: a transformer and a GRU.

The paper names recurrent networks and transformers as what it did not try. Adam, muon,
MBF and mbf_adam, each with its own best setting, and mbf_adam at Adam's best rate.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.models import Transformer
from benchmarks.paper import data, tasks
from benchmarks.paper.comparison import (
  Curve,
  Outcome,
  Search,
  Session,
  compare,
  comparison_figure,
  comparison_table,
  record,
  session,
  work,
)
from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.optimizers import with_ratio
from benchmarks.paper.report import table
from benchmarks.paper.studies.networks import Gru

RATES = (1e-3, 3e-3, 0.01, 0.03)
METRICS = {"test loss": "{:.3f}", "train loss": "{:.3f}", "test accuracy": "{:.1%}"}
POINTS = 6
ADAMS_RATE = "mbf_adam, Adam's rate"


class Size(NamedTuple):
  """The networks, the windows of text, how long, and who takes part."""

  width: int
  layers: int
  heads: int
  length: int
  batch: int
  steps: int
  seeds: int
  settings: int
  networks: tuple[str, ...] = ("transformer", "gru")
  optimizers: tuple[str, ...] = ("adam", "muon", "mbf", "mbf_adam")


SIZES = {
  "quick": Size(8, 1, 2, 8, 4, 3, 1, 1, ("gru",), ("adam", "mbf_adam")),
  "cpu": Size(64, 2, 4, 32, 16, 300, 3, 16),
  "paper": Size(256, 4, 4, 256, 64, 5_000, 3, 16),
}


def run(options: Options) -> Report:
  """Both networks with every optimizer."""
  size = SIZES[options.scale]
  text = data.text(options)
  vocabulary = len(text.vocabulary)
  networks = {
    "transformer": Transformer(vocabulary, size.width, size.layers, size.heads),
    "gru": Gru(vocabulary, size.width),
  }
  grids = {name: optimizers(size)[name] for name in size.optimizers}
  problems = {name: _task(name, networks[name], text, size) for name in size.networks}
  total = sum(work(task, grids, size.seeds) for task in problems.values())
  total += len(problems) * size.steps * size.seeds
  outcomes = {}
  with session(options, "sequence", total) as opened:
    for name, task in problems.items():
      outcomes[name] = _compare(task, grids, size.seeds, opened)
  parts = [
    f"{name}:\n\n{comparison_table(found, METRICS)}" for name, found in outcomes.items()
  ]
  parts.append(f"How the GRU is read:\n\n{_readings(networks['gru'])}")
  return Report(
    "\n\n".join(parts),
    {name: record(found) for name, found in outcomes.items()},
    {"sequence": comparison_figure(outcomes, ("test loss",))},
  )


def _task(name: str, network: nn.Module, text: data.Text, size: Size) -> tasks.Task:
  """Windows of the text; metrics of 1,000 of them."""
  shape = size.batch, size.steps, size.length
  task = tasks.language(name, network, text.train, text.test, *shape)
  return dataclasses.replace(task, evaluated=1_000)


def optimizers(size: Size) -> dict[str, Optimizer]:
  """Each with its grid, of ``size.settings`` settings at most."""
  rates = [{"learning_rate": rate} for rate in RATES][: size.settings]
  larger = [{"learning_rate": 3 * rate} for rate in RATES][: size.settings]
  pairs = with_ratio((1e-5, 1e-4, 1e-3, 0.01), (0.1, 0.3, 1.0, 3.0))
  return {
    "adam": Optimizer(optax.adam, rates),
    "muon": Optimizer(baselines.muon, larger),
    "mbf": Optimizer(mbf_optax.mbf, pairs[: size.settings]),
    "mbf_adam": Optimizer(mbf_optax.mbf_adam, rates),
  }


def _compare(
  task: tasks.Task, grids: dict[str, Optimizer], seeds: int, opened: Session
) -> dict[str, Outcome]:
  """All optimizers, and mbf_adam once more with Adam's learning rate."""
  outcomes = compare(task, grids, seeds, opened, Search("test loss"), POINTS)
  runs = opened.train(
    ADAMS_RATE,
    task,
    grids["mbf_adam"],
    settings=[outcomes["adam"].setting],
    seeds=range(1, 1 + seeds),
    points=POINTS,
  )
  like = outcomes["mbf_adam"]
  return {
    **outcomes,
    ADAMS_RATE: Outcome(like.search, runs, like.seconds, Curve.of(runs)),
  }


def _readings(network: nn.Module) -> str:
  tokens = jnp.zeros((1, 2), jnp.int32)
  params = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
  rows = [
    [layer.path, layer.shape, layer.reading, layer.blocks, layer.block_size]
    for layer in mbf_optax.summarize(params).layers
  ]
  return table(["weights", "shape", "reading", "blocks", "size"], rows)
