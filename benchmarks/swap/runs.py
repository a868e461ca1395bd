"""The trainings whose results are missing, saved seed by seed."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.swap import ppo, results, training
from benchmarks.swap.optimizers import Optimizer
from benchmarks.swap.problem import Problem

_PARTS = 10  # of a training in reinforcement learning, whose mean returns are kept


def train(
  problem: tuple[str, Problem],
  optimizers: Mapping[str, Optimizer],
  seeds: Sequence[int],
  folder: pathlib.Path,
  resume: bool = True,
) -> dict[str, list[int]]:
  """Trains a problem with optimizers from every seed whose result is missing.

  Optimizers take turns within a seed, since a machine is faster one minute than the
  next; what is resumed alone was timed at another time than the rest.

  Args:
    problem: its name and itself.
    optimizers: by name.
    seeds: one training each.
    folder: of the results.
    resume: whether results that are there already are kept, if they were made with the
      same settings.

  Returns:
    The seeds that were trained, by optimizer.
  """
  task, wanted = problem[1], _of_problem(problem, optimizers)
  missing = {key: _missing(folder, w, seeds, resume) for key, w in wanted.items()}
  runs = {
    key: training.trainer(task, optimizers[key].build(task.rate, task.partition))
    for key, of_optimizer in missing.items()
    if of_optimizer
  }
  for seed in seeds:
    chosen = {key: run(seed) for key, run in runs.items() if seed in missing[key]}
    for key, found in training.in_turn(chosen).items():
      _save(folder, wanted[key], seed, found._asdict())
  return missing


def begin(
  problem: tuple[str, Problem],
  optimizers: Mapping[str, Optimizer],
  seeds: Sequence[int],
  folder: pathlib.Path,
  resume: bool = True,
) -> list[str]:
  """The first 20 steps alone, from more seeds than whole trainings can have.

  Args:
    problem: as in :func:`train`.
    optimizers: likewise.
    seeds: from zero on.
    folder: of all results; these are below ``first``, a file for all seeds.
    resume: likewise; results of more seeds are kept too.

  Returns:
    The optimizers that were tried.
  """
  task, tried = problem[1], []
  brief = dataclasses.replace(
    task, steps=training.FIRST, held_out=lambda params: jnp.zeros(())
  )
  for key, wanted in _of_problem(problem, optimizers).items():
    file = folder / "first" / problem[0] / f"{key}.json"
    kept = results.first(file) if resume and results.done(file, wanted) else []
    if len(kept) < len(seeds):
      run = training.trainer(brief, optimizers[key].build(task.rate, task.partition))
      found = [training.in_turn({key: run(seed)})[key].first for seed in seeds]
      tried.append(key)
      results.save(
        file, {**wanted, "first": found, "environment": results.environment()}
      )
  return tried


def reinforce(
  task: tuple[str, ppo.Task],
  optimizer: tuple[str, Optimizer],
  seeds: Sequence[int],
  folder: pathlib.Path,
  resume: bool = True,
) -> list[int]:
  """Trains a policy from every seed whose result is missing, all of them at once.

  Args:
    task: its name and itself.
    optimizer: as in :func:`train`.
    seeds: as in :func:`train`.
    folder: of all results; these are below ``ppo``.
    resume: as in :func:`train`.

  Returns:
    The seeds that were trained.
  """
  folder = folder / "ppo"
  wanted = _wanted(task[0], optimizer) | {"task": task[1]._asdict()}
  missing = _missing(folder, wanted, seeds, resume)
  if missing:
    run = ppo.trainer(task[1], optimizer[1].build(task[1].schedule, None))
    keys = jax.vmap(jax.random.key)(np.asarray(missing, np.uint32))
    totals, episodes = map(np.asarray, run(keys))
    for seed, total, ended in zip(missing, totals, episodes, strict=True):
      _save(folder, wanted, seed, _returns(total, ended))
  return missing


def _returns(total: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
  """Mean returns of the last updates' episodes, and of each tenth of the training."""
  parts = np.array_split(total, _PARTS), np.array_split(ended, _PARTS)
  tenths = [t.sum() / max(e.sum(), 1) for t, e in zip(*parts, strict=True)]
  last = total[-ppo.LAST :].sum() / max(ended[-ppo.LAST :].sum(), 1)
  return {"return": float(last), "returns": [float(value) for value in tenths]}


def _of_problem(
  problem: tuple[str, Problem], optimizers: Mapping[str, Optimizer]
) -> dict[str, dict[str, Any]]:
  """What results of a problem are made with, by optimizer."""
  name, task = problem
  of_task = {key: getattr(task, key) for key in ("rate", "steps", "note")}
  of_task["title"] = task.name
  return {key: _wanted(name, (key, o)) | of_task for key, o in optimizers.items()}


def _wanted(problem: str, optimizer: tuple[str, Optimizer]) -> dict[str, Any]:
  name, chosen = optimizer
  return {
    "problem": problem,
    "optimizer": name,
    "settings": dict(chosen.settings),
    "version": chosen.version,
  }


def _missing(
  folder: pathlib.Path, wanted: Mapping[str, Any], seeds: Sequence[int], resume: bool
) -> list[int]:
  files = {seed: _file(folder, wanted, seed) for seed in seeds}
  return [s for s, file in files.items() if not (resume and results.done(file, wanted))]


def _save(
  folder: pathlib.Path, wanted: Mapping[str, Any], seed: int, found: Mapping[str, Any]
) -> None:
  record = {**wanted, "seed": seed, **found, "environment": results.environment()}
  results.save(_file(folder, wanted, seed), record)


def _file(folder: pathlib.Path, wanted: Mapping[str, Any], seed: int) -> pathlib.Path:
  return folder / wanted["problem"] / f"{wanted['optimizer']}-{seed}.json"
