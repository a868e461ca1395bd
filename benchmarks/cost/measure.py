"""Timing whole training steps of several optimizers in turn, in one process.

An optimizer with periods T1 and T2 has up to three kinds of step: one that refreshes
inverses, one that only updates statistics, and a plain one. Each kind is timed by
setting the step counter, and the mean over a whole period is their weighted sum.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cost.optimizers import Factory, Timed
from benchmarks.cost.problems import Problem, training_step
from mbf_optax import MbfState


class Cost(NamedTuple):
  """What one optimizer costs on one problem.

  Attributes:
    mean: seconds a step, averaged over a whole period.
    worst: seconds of the dearest kind of step.
    compile_update: seconds to compile the update alone.
    state_bytes: bytes of the optimizer's state.
    temporary_bytes: bytes that the compiled step allocates besides its arguments.
  """

  mean: float
  worst: float
  compile_update: float
  state_bytes: int
  temporary_bytes: int


def measure(
  problem: Problem, optimizers: dict[str, Factory], rounds: int
) -> dict[str, Cost]:
  """Costs of the optimizers, timed in turn for ``rounds`` rounds."""
  runs = {name: _Run(problem, build()) for name, build in optimizers.items()}
  for _ in range(rounds):
    for run in runs.values():
      run.time_each_kind()
  return {name: run.cost() for name, run in runs.items()}


class _Run:
  """One optimizer's compiled training step and its timings so far."""

  def __init__(self, problem: Problem, timed: Timed):
    mutable = problem.model.init(jax.random.key(0), problem.inputs)
    params = mutable.pop("params")
    state = timed.tx.init(params)
    self.weights = _weights(timed)
    self.counts = {"refresh": 0, "statistics": timed.statistics, "plain": 1}
    self.seconds: dict[str, list[float]] = {kind: [] for kind in self.weights}
    self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    update = jax.jit(timed.tx.update, donate_argnums=(0, 1))
    lowered = update.lower(params, state, params)
    start = time.perf_counter()
    lowered.compile()
    self.compile_update = time.perf_counter() - start

    step = jax.jit(training_step(problem, timed.tx), donate_argnums=(0, 1, 2))
    self.step = step.lower(params, mutable, state).compile()
    self.temporary_bytes = self.step.memory_analysis().temp_size_in_bytes
    self.carry = self.step(params, mutable, state)

  def time_each_kind(self) -> None:
    for kind, seconds in self.seconds.items():
      params, mutable, state = self.carry
      state = _at_count(state, self.counts[kind])
      jax.block_until_ready(state)
      start = time.perf_counter()
      self.carry = jax.block_until_ready(self.step(params, mutable, state))
      seconds.append(time.perf_counter() - start)

  def cost(self) -> Cost:
    medians = {kind: float(np.median(s)) for kind, s in self.seconds.items()}
    return Cost(
      mean=sum(self.weights[kind] * medians[kind] for kind in medians),
      worst=max(medians.values()),
      compile_update=self.compile_update,
      state_bytes=self.state_bytes,
      temporary_bytes=self.temporary_bytes,
    )


def _weights(timed: Timed) -> dict[str, float]:
  """Share of each kind of step in a period, for kinds that occur."""
  shares = {
    "refresh": 1 / timed.inverse,
    "statistics": 1 / timed.statistics - 1 / timed.inverse,
    "plain": 1 - 1 / timed.statistics,
  }
  return {kind: share for kind, share in shares.items() if share > 0}


def _at_count(state: Any, count: int) -> Any:
  """The optimizer state with MBF's step counter set."""

  def is_mbf(node: Any) -> bool:
    return isinstance(node, MbfState)

  return jax.tree.map(
    lambda s: s._replace(count=jnp.int32(count)) if is_mbf(s) else s,
    state,
    is_leaf=is_mbf,
  )
