"""Seconds a step of optimizers, each trained alone, in turn, and compiled first."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.steps import in_calls
from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Trainer


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
  """One setting trained from one seed without ``vmap``, on the same batches again."""

  def __init__(self, task: Task, optimizer: Optimizer, setting: Setting, length: int):
    self.seconds: list[float] = []
    trainer = Trainer(task, optimizer, [setting], [0])
    self._chunk = trainer.compiled.alone
    arguments = trainer.arguments(trainer.start(1).carry, 0, length)
    self._hyper, carry, *self._inputs = trainer.one(arguments, (0, 0))
    self._carry = carry
    self._train()  # compiles

  def time_chunk(self) -> None:
    jax.block_until_ready(self._carry)
    start = time.perf_counter()
    self._train()
    jax.block_until_ready(self._carry)
    self.seconds.append(time.perf_counter() - start)

  def _train(self) -> None:
    arguments = self._hyper, self._carry, *self._inputs
    self._carry, _ = in_calls(self._chunk, arguments)
