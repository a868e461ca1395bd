"""Steps of training: which rows of the data they take, and how they are called."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.paper.methods import Gradient
from benchmarks.paper.tasks import Batch, Task, Variables


class Carry(NamedTuple):
  """What a training step changes."""

  variables: Variables
  state: optax.OptState


def run_chunk(
  task: Task,
  build: Callable[..., optax.GradientTransformation],
  gradient: Gradient,
  hyper: dict[str, jax.Array],
  carry: Carry,
  key: jax.Array,
  order: jax.Array,
  numbers: jax.Array,
  data: Batch,
) -> tuple[Carry, jax.Array]:
  """Steps of one run.

  Args:
    task: what to train.
    build: from hyperparameters to the optimizer.
    gradient: what a step computes from a batch.
    hyper: one setting.
    carry: the run so far.
    key: of the run.
    order: ``(steps, batch)``, rows of ``data``.
    numbers: ``(steps,)``, steps done before each step.
    data: the training data.

  Returns:
    The run afterwards, and the losses before each step.
  """
  tx = optax.with_extra_args_support(build(**hyper))

  def step(carry: Carry, inputs: tuple) -> tuple[Carry, jax.Array]:
    number, rows = inputs
    variables = carry.variables
    loss, mutable, gradients, extra = gradient(
      task, variables, take(data, rows), jax.random.fold_in(key, number)
    )
    params = variables["params"]
    updates, state = tx.update(gradients, carry.state, params, **extra)
    params = optax.apply_updates(params, updates)
    return Carry({**variables, **mutable, "params": params}, state), loss

  if len(order) == 1:
    carry, loss = step(carry, (numbers[0], order[0]))
    return carry, loss[None]
  return jax.lax.scan(step, carry, (numbers, order))


def in_calls(
  chunk: Callable[..., tuple[Carry, jax.Array]], arguments: tuple
) -> tuple[Carry, jax.Array | np.ndarray]:
  """A chunk of steps in as many calls as the backend wants.

  A CPU runs convolutions several times more slowly inside of a loop, so there every
  step is a call; elsewhere a loop saves the calls.

  Args:
    chunk: ``run_chunk`` of one run or of several side by side.
    arguments: its arguments after task, build and gradient, of all steps.

  Returns:
    What ``chunk`` returns.
  """
  if jax.default_backend() != "cpu":
    return chunk(*arguments)
  hyper, carry, key, order, numbers, data = arguments
  order, numbers, losses = np.asarray(order), np.asarray(numbers), []
  for step in range(len(numbers)):
    rows, number = order[..., step : step + 1, :], numbers[step : step + 1]
    carry, loss = chunk(hyper, carry, key, rows, number, data)
    losses.append(loss)
  return carry, np.concatenate(losses, -1)


@functools.lru_cache(maxsize=64)
def _epoch(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def batch_rows(task: Task, seed: int, done: int, steps: int) -> np.ndarray:
  """``(steps, batch)``: the rows of each batch, shuffled anew in every epoch."""
  size = len(jax.tree.leaves(task.train)[0])
  batches = size // task.batch_size
  rows = []
  for step in range(done, done + steps):
    epoch, index = divmod(step, batches)
    start = index * task.batch_size
    rows.append(_epoch(seed, epoch, size)[start : start + task.batch_size])
  return np.stack(rows)


def take(data: Batch, rows: Any) -> Batch:
  """Rows of every array of the data."""
  return jax.tree.map(lambda array: array[rows], data)
