"""The first 20 steps alone, from more seeds than whole trainings can have."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from benchmarks.swap import results, training
from benchmarks.swap.optimizers import Optimizer
from benchmarks.swap.problem import Problem

FILE = "first_steps.json"


def losses(problem: Problem, optimizer: Optimizer, seeds: int) -> list[float]:
  """Mean training losses of the first 20 steps, as whole trainings have them."""
  brief = dataclasses.replace(
    problem, steps=training.FIRST, held_out=lambda params: jnp.zeros(())
  )
  run = training.trainer(brief, optimizer.build(problem.rate, problem.partition))
  trainings = {str(seed): run(seed) for seed in range(seeds)}
  found = training.in_turn(trainings)
  return [found[seed].first for seed in trainings]


def load(folder: pathlib.Path) -> dict[str, dict[str, list[float]]]:
  """The losses that a folder has, by problem, optimizer and seed."""
  file = folder / FILE
  return json.loads(file.read_text())["first"] if file.exists() else {}


def train(
  problem: tuple[str, Problem],
  optimizers: Mapping[str, Optimizer],
  seeds: int,
  folder: pathlib.Path,
  resume: bool,
) -> None:
  """Adds a problem's losses to those of a folder."""
  found = load(folder)
  of_problem = found.setdefault(problem[0], {})
  for name, optimizer in optimizers.items():
    if not resume or len(of_problem.get(name, ())) != seeds:
      of_problem[name] = losses(problem[1], optimizer, seeds)
      record: dict[str, Any] = {"environment": results.environment(), "first": found}
      results.save(folder / FILE, record)
