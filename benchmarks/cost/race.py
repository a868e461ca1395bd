"""Prints the seconds to the loss that the best of Adam's grid has after 300 steps.

Steps to that loss are counted in trainings of their own; seconds are those counts times
the mean seconds of a step, timed in turn with Adam's, whole periods at a time.

python -m benchmarks.cost.race --problems autoencoder --data-dir ~/tensorflow_datasets
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
from tqdm import tqdm

import mbf_optax
from benchmarks import models
from benchmarks.cost.report import environment
from benchmarks.paper import data
from benchmarks.paper.experiment import Options
from benchmarks.paper.measure import seconds_per_step
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.report import table
from benchmarks.paper.tasks import Task, classification, reconstruction
from benchmarks.paper.training import train

STEPS = 300
EVERY = 10  # steps between looks at the loss


class Finish(NamedTuple):
  """How an optimizer came through.

  Attributes:
    setting: its hyperparameters.
    steps: until the loss was reached, ``None`` if it was not.
    loss: after all steps.
    seconds: of one step.
  """

  setting: Setting
  steps: int | None
  loss: float
  seconds: float


def autoencoder(options: Options) -> Task:
  """The paper's MNIST autoencoder at its full size."""
  images = data.images("mnist", options)
  return reconstruction("autoencoder", images, models.MNIST_WIDTHS, 1000, STEPS)


def resnet(options: Options) -> Task:
  """A small ResNet on CIFAR-10, without augmentation."""
  images = data.images("cifar10", options)
  task = classification("resnet", models.ResNet(8), images, 128, STEPS)
  return dataclasses.replace(task, evaluated=1280)


PROBLEMS: dict[str, Callable[[Options], Task]] = {
  "autoencoder": autoencoder,
  "resnet": resnet,
}
RATES = (1e-3, 2e-3, 3e-3, 5e-3)
VARIANTS: dict[str, dict[str, Any]] = {
  "mbf_adam": {},
  "mbf_adam, bfloat16 inverses": {"inverse_dtype": "bfloat16"},
  "mbf_adam, one side": {"partition": mbf_optax.flax_partition("shared")},
}
DAMPED = ((1e-4, 3e-4), (1e-4, 3e-3), (3e-4, 3e-3), (3e-4, 1e-2), (1e-3, 1e-2))


def race(task: Task) -> dict[str, Finish]:
  """Adam's grid, ``mbf_adam`` at Adam's best rate, and the grid of ``mbf``.

  ``mbf_adam`` runs in every variant.
  """
  adam = Optimizer(optax.adam, [{"learning_rate": rate} for rate in RATES])
  grid = [{"learning_rate": rate, "damping": damping} for rate, damping in DAMPED]
  total = STEPS * (len(RATES) + len(VARIANTS) + len(DAMPED))
  with tqdm(total=total, unit="step", desc=task.name) as bar:
    run = functools.partial(train, task, points=STEPS // EVERY, bar=bar)
    reference = run(adam)
    best = reference.best()
    goal = float(reference.final("train loss")[best, 0])
    optimizers = {
      name: Optimizer(
        functools.partial(mbf_optax.mbf_adam, **options), [adam.settings[best]]
      )
      for name, options in VARIANTS.items()
    }
    optimizers["mbf"] = Optimizer(mbf_optax.mbf, grid)
    contenders = {"adam": (adam, reference.only(best))}
    contenders |= {name: (other, run(other)) for name, other in optimizers.items()}
  chosen, counts, losses = {}, {}, {}
  for name, (optimizer, runs) in contenders.items():
    curves = runs.metrics["train loss"][:, 0]
    reached = [_steps_to(goal, curve, runs.at) for curve in curves]
    first = runs.best()
    if any(reached):
      first = int(np.argmin([np.inf if steps is None else steps for steps in reached]))
    chosen[name] = optimizer, runs.settings[first]
    counts[name], losses[name] = reached[first], float(curves[first, -1])
  seconds = seconds_per_step(task, chosen, rounds=3, length=100)
  return {
    name: Finish(setting, counts[name], losses[name], seconds[name])
    for name, (_, setting) in chosen.items()
  }


def _steps_to(goal: float, curve: np.ndarray, at: np.ndarray) -> int | None:
  """The first look at which the loss is no larger than the goal."""
  reached = np.flatnonzero(curve <= goal)
  return int(at[reached[0]]) if len(reached) else None


def summary(finishes: dict[str, Finish]) -> str:
  """A table of the race, relative to Adam."""
  adam = finishes["adam"]
  titles = [
    "optimizer",
    "setting",
    "step / adam's",
    "steps",
    "seconds / adam's",
    "loss",
  ]
  rows = []
  for name, finish in finishes.items():
    step = finish.seconds / adam.seconds
    share = None if finish.steps is None else step * finish.steps / adam.steps
    rows.append(
      [
        name,
        ", ".join(f"{value:g}" for value in finish.setting.values()),
        f"{step:.2f}",
        "never" if finish.steps is None else str(finish.steps),
        "" if share is None else f"{share:.2f}",
        f"{finish.loss:.4g}",
      ]
    )
  return table(titles, rows)


def main() -> None:
  """Races, prints and writes JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
  parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  arguments = parser.parse_args()
  options = Options(data_dir=arguments.data_dir)
  results = {name: race(PROBLEMS[name](options)) for name in arguments.problems}
  for name, finishes in results.items():
    print(f"\n{name}\n{summary(finishes)}")
  arguments.out.mkdir(parents=True, exist_ok=True)
  record = {p: {n: f._asdict() for n, f in r.items()} for p, r in results.items()}
  (arguments.out / "race.json").write_text(
    json.dumps(environment() | {"races": record}, indent=2)
  )


if __name__ == "__main__":
  main()
