"""Trains an autoencoder and a convnet with SGD, Adam, mbf and mbf_adam.

Every optimizer gets the same number of trials, each at one setting of its own small
grid. The setting with the lowest final training loss, averaged over the search's seeds,
is then trained from seeds that the search has not seen; those runs make the closing
tables and the figure. Compilation comes before the clock starts.

  python examples/train.py
  python examples/train.py --dataset fashion_mnist --download
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from data import NAMES, Data, batches, load
from models import Autoencoder, Convnet
from problems import Classification, Reconstruction
from report import Result, Run, figure, table
from tqdm import tqdm

from mbf_optax import mbf, mbf_adam

Problem = Reconstruction | Classification
Setting = dict[str, float]
Build = Callable[..., optax.GradientTransformation]

SEARCH_SEEDS = (1000, 1001)
EVALUATED = 10_000  # images, at most, that a finished run is scored on
QUICK = {"steps": 4, "seeds": 1, "trials": 2, "batch_size": 32}


class Optimizer(NamedTuple):
  """A function that builds an optimizer, and the settings to try it with."""

  build: Build
  grid: list[Setting]


def rates(*learning_rates: float) -> list[Setting]:
  """Settings that differ in their learning rate alone."""
  return [{"learning_rate": rate} for rate in learning_rates]


def damped(*pairs: tuple[float, float]) -> list[Setting]:
  """Settings of a learning rate and a damping."""
  return [{"learning_rate": rate, "damping": damping} for rate, damping in pairs]


OPTIMIZERS = {
  "sgd, momentum": Optimizer(
    functools.partial(optax.sgd, momentum=0.9), rates(5e-3, 0.01, 0.02, 0.05, 0.1, 0.2)
  ),
  "adam": Optimizer(optax.adam, rates(1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05)),
  "mbf": Optimizer(
    mbf,
    damped(
      (1e-4, 1e-3), (3e-4, 1e-3), (3e-4, 3e-3), (1e-3, 3e-3), (1e-3, 0.01), (3e-3, 0.01)
    ),
  ),
  "mbf_adam": Optimizer(mbf_adam, rates(1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05)),
}


class Task(NamedTuple):
  """A problem on a data set, and how long to train."""

  problem: Problem
  data: Data
  steps: int
  batch_size: int


# The optimizer is built inside of the compiled step, from traced settings, so that all
# of its settings share one compilation.
@functools.partial(jax.jit, static_argnames=("problem", "build"), donate_argnums=(3, 4))
def train_step(
  problem: Problem,
  build: Build,
  setting: Setting,
  params: Any,
  state: optax.OptState,
  x: jax.Array,
  y: jax.Array,
) -> tuple[Any, optax.OptState, jax.Array]:
  """One step on a mini-batch: parameters, optimizer state and loss."""
  loss, gradients = jax.value_and_grad(problem.loss)(params, x, y)
  updates, state = build(**setting).update(gradients, state, params)
  return optax.apply_updates(params, updates), state, loss


@functools.partial(jax.jit, static_argnames="problem")
def initialize(problem: Problem, seed: int, x: jax.Array) -> Any:
  """Parameters before training."""
  return problem.init(jax.random.key(seed), x)


@functools.partial(jax.jit, static_argnames="problem")
def evaluate(problem: Problem, params: Any, data: Data) -> tuple[jax.Array, jax.Array]:
  """Loss on the training images, score on the held-out ones."""
  loss = problem.loss(params, data.x_train, data.y_train)
  return loss, problem.score(params, data.x_test, data.y_test)


def train(task: Task, optimizer: Optimizer, setting: Setting, seed: int) -> Run:
  """Trains once; the seed gives the first parameters and the order of the data."""
  problem, data, steps, batch_size = task
  params = initialize(problem, seed, data.x_train[:1])
  state = optimizer.build(**setting).init(params)
  state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  losses, seconds = [], []
  start = time.perf_counter()
  for x, y in batches(data, batch_size, steps, seed):
    params, state, loss = train_step(
      problem, optimizer.build, setting, params, state, x, y
    )
    losses.append(float(loss))
    seconds.append(time.perf_counter() - start)
  loss, score = evaluate(problem, params, Data(*(a[:EVALUATED] for a in data)))
  return Run(losses, seconds, float(loss), float(score), state_bytes)


def compare(task: Task, trials: int, seeds: int, bar: tqdm) -> list[Result]:
  """Searches the setting of every optimizer, then trains with it."""
  results = []
  for name, optimizer in OPTIMIZERS.items():
    bar.set_description(f"{task.problem.title}, {name}")
    grid = optimizer.grid[:trials]
    train(task._replace(steps=1), optimizer, grid[0], seed=0)  # compiles
    losses = []
    for setting in grid:
      found = [train(task, optimizer, setting, seed).loss for seed in SEARCH_SEEDS]
      losses.append(np.nan_to_num(np.mean(found), nan=np.inf))
      bar.update(len(found))
    best = grid[int(np.argmin(losses))]
    results.append(Result(name, best, []))
    for seed in range(seeds):
      results[-1].runs.append(train(task, optimizer, best, seed))
      bar.update()
  return results


def parse() -> argparse.Namespace:
  """Options of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--dataset", choices=NAMES, default="digits")
  add("--data-dir", help="folder of tensorflow-datasets")
  add("--download", action="store_true", help="fetch and prepare a missing data set")
  add("--steps", type=int, default=200, help="steps of every run")
  add("--batch-size", type=int, default=128)
  add("--seeds", type=int, default=3, help="runs that the tables average")
  add("--trials", type=int, default=6, help="settings that are tried, at most six")
  add(
    "--quick", action="store_true", help="a few steps of tiny networks, to see it run"
  )
  options = parser.parse_args()
  if options.quick:
    vars(options).update(QUICK)
  return options


def main() -> None:
  """Runs the comparison and reports it."""
  options = parse()
  data = load(options.dataset, options.data_dir, options.download)
  autoencoder, convnet = Autoencoder(), Convnet(data.classes)
  if options.quick:
    autoencoder, convnet = Autoencoder((4,)), Convnet(data.classes, (2, 4), 8)
  problems = Reconstruction(autoencoder), Classification(convnet)
  runs = len(SEARCH_SEEDS) * options.trials + options.seeds
  outcomes = {}
  with tqdm(total=len(problems) * len(OPTIMIZERS) * runs, unit="run") as bar:
    for problem in problems:
      task = Task(problem, data, options.steps, options.batch_size)
      outcomes[problem] = compare(task, options.trials, options.seeds, bar)
  for problem, results in outcomes.items():
    print(
      f"\n{problem.title} on {options.dataset}: {options.steps} steps of"
      f" {options.batch_size}, mean and standard deviation over {options.seeds} seeds"
    )
    print(table(problem, results))
  figure(outcomes, pathlib.Path("results") / f"train_{options.dataset}.png")


if __name__ == "__main__":
  main()
