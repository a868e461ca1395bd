"""Trainings in turn, timed, with the held-out loss at points along them."""

import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.swap.problem import Problem

POINTS = 10  # at which the held-out loss is measured, besides the start
FIRST = 20  # steps whose mean training loss is kept by itself


class Run(NamedTuple):
  """What one training gave.

  Attributes:
    first: mean training loss of the first 20 steps.
    train: mean training loss of each tenth of the training.
    held_out: held-out loss at the start and after every tenth.
    seconds: of ten tenths like the median one, which has no early refreshes of
      ``mbf_adam``; without compilation and without the held-out losses.
  """

  first: float
  train: list[float]
  held_out: list[float]
  seconds: float


Training = Generator[None, None, Run]
"""A training that pauses after every tenth, and gives its run in the end."""


def in_turn(trainings: Mapping[str, Training]) -> dict[str, Run]:
  """Trains a tenth of each, then the next tenths: what a machine does meets all."""
  found: dict[str, Run] = {}
  while len(found) < len(trainings):
    for name in [name for name in trainings if name not in found]:
      try:
        next(trainings[name])
      except StopIteration as end:
        found[name] = end.value
  return found


def trainer(
  problem: Problem, tx: optax.GradientTransformation
) -> Callable[[int], Training]:
  """Compiles a problem's training once, for all its seeds.

  Args:
    problem: what to train.
    tx: the optimizer.

  Returns:
    The training as a function of a seed, which decides on the parameters at the start,
    the batches and the loss' randomness, the same for every optimizer.

  Raises:
    ValueError: if the training's length is no multiple of ten.
  """
  if problem.steps % POINTS:
    raise ValueError(
      f"{problem.name} has {problem.steps} steps, which is no multiple of {POINTS}, at"
      " which its held-out loss is measured; change the problem's steps"
    )
  length = problem.steps // POINTS

  advance = _advance(problem, tx, length if problem.scanned else 1)
  numbers = np.arange(problem.steps, dtype=np.int32)
  numbers = numbers.reshape(POINTS, *((1, -1) if problem.scanned else (-1, 1)))
  init, held_out = jax.jit(problem.init), jax.jit(problem.held_out)
  init_state = jax.jit(tx.init)
  compiled: list[Callable] = []

  def run(seed: int) -> Training:
    key_init, key = jax.random.split(jax.random.key(seed))
    params = init(key_init)
    carry = params, init_state(params)
    if not compiled:
      compiled.append(advance.lower(carry, numbers[0, 0], key).compile())
    seconds: list[float] = []
    losses: list[np.ndarray] = []
    points = [float(held_out(carry[0]))]
    for tenth in numbers:
      begun, new = time.perf_counter(), []
      for part in tenth:
        carry, loss = compiled[0](carry, part, key)
        new.append(loss)
      jax.block_until_ready(carry)
      seconds.append(time.perf_counter() - begun)
      losses.append(np.concatenate(new, dtype=np.float64))
      points.append(float(held_out(carry[0])))
      yield
    return Run(
      float(np.concatenate(losses)[:FIRST].mean()),
      [float(tenth.mean()) for tenth in losses],
      points,
      POINTS * float(np.median(seconds)),
    )

  return run


def _advance(problem: Problem, tx: optax.GradientTransformation, length: int) -> Any:
  """``length`` steps: from parameters, state, the steps' numbers and a key."""

  @jax.jit
  def advance(
    carry: tuple[Any, Any], numbers: jax.Array, key: jax.Array
  ) -> tuple[tuple[Any, Any], jax.Array]:
    key_batch, key_loss = jax.random.split(key)

    def step(carry: tuple[Any, Any], number: jax.Array) -> tuple[Any, jax.Array]:
      params, state = carry
      batch = problem.batch(number, key_batch)
      loss, gradient = jax.value_and_grad(problem.loss)(
        params, batch, jax.random.fold_in(key_loss, number)
      )
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    if length > 1:
      return jax.lax.scan(step, carry, numbers)
    carry, loss = step(carry, numbers[0])
    return carry, loss[None]

  return advance
