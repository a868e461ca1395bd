"""Seconds a step of optimizers, each trained alone, in turn, and compiled first."""

import functools
import time
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Optimizer, Setting, Trainer, run_chunk


def seconds_per_step(
  task: Task,
  optimizers: Mapping[str, tuple[Optimizer, Setting]],
  rounds: int = 3,
  length: int = 100,
) -> dict[str, float]:
  """Times chunks of training steps, interleaved over the optimizers.

  A chunk covers a whole period of whatever an optimizer does only now and then; the
  median over rounds is little moved by what else the machine does.

  Args:
    task: what to train.
    optimizers: optimizers and the settings to train with, by name.
    rounds: timed chunks of each.
    length: steps of a chunk.

  Returns:
    Seconds a step, by name.
  """
  bar = tqdm(total=len(optimizers) * (rounds + 1), desc=f"{task.name}: timing")
  runs = {}
  for name, (optimizer, setting) in optimizers.items():
    runs[name] = _Alone(task, optimizer, setting, length)
    bar.update()
  for _ in range(rounds):
    for run in runs.values():
      run.time_chunk()
      bar.update()
  bar.close()
  return {name: float(np.median(run.seconds)) / length for name, run in runs.items()}


class _Alone:
  """One setting trained from one seed, without ``vmap``."""

  def __init__(self, task: Task, optimizer: Optimizer, setting: Setting, length: int):
    trainer = Trainer(task, optimizer, [setting], [0])
    arguments = trainer.arguments(trainer.start(1).carry, 0, length)
    hyper, carry, key, order, self._numbers, data = arguments
    one = functools.partial(jax.tree.map, lambda x: x[0, 0] if x.ndim else x)
    self._carry, self._length = one(carry), length
    hyper, key, order = jax.tree.map(lambda x: x[0], (hyper, key, order))
    chunk = jax.jit(functools.partial(run_chunk, task, optimizer), donate_argnums=1)
    fixed = hyper, key, order, data
    self._chunk = chunk.lower(*self._arguments(fixed)).compile()
    self._fixed, self.seconds = fixed, []

  def time_chunk(self) -> None:
    arguments = jax.block_until_ready(self._arguments(self._fixed))
    start = time.perf_counter()
    self._carry, losses = jax.block_until_ready(self._chunk(*arguments))
    self.seconds.append(time.perf_counter() - start)
    self._numbers = self._numbers + self._length

  def _arguments(self, fixed: tuple) -> tuple:
    hyper, key, order, data = fixed
    return hyper, self._carry, key, order, self._numbers, data
