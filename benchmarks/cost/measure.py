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
from mbf_optax import MbfAdamState, MbfState


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
    self.shares = _shares(timed)
    self.seconds: dict[int, list[float]] = {count: [] for count in self.shares}
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
    for count, seconds in self.seconds.items():
      params, mutable, state = self.carry
      state = _at_count(state, count)
      jax.block_until_ready(state)
      start = time.perf_counter()
      self.carry = jax.block_until_ready(self.step(params, mutable, state))
      seconds.append(time.perf_counter() - start)

  def cost(self) -> Cost:
    medians = {count: float(np.median(s)) for count, s in self.seconds.items()}
    return Cost(
      mean=sum(self.shares[count] * medians[count] for count in medians),
      worst=max(medians.values()),
      compile_update=self.compile_update,
      state_bytes=self.state_bytes,
      temporary_bytes=self.temporary_bytes,
    )


def _shares(timed: Timed) -> dict[int, float]:
  """A count of updates for each kind of step that occurs, and its share of a period."""
  statistics, inverse = timed.statistics, timed.inverse
  # Counts of the second period: in the first, mbf_adam also refreshes at 1, 2, 4, ...
  refresh = inverse, 1 / inverse
  only_statistics = inverse + statistics, 1 / statistics - 1 / inverse
  plain = inverse + 1, 1 - 1 / statistics
  kinds = (refresh, only_statistics, plain)
  return {count: share for count, share in kinds if share > 0}


def _at_count(state: Any, count: int) -> Any:
  """The optimizer state with the step counters of MBF and mbf_adam set."""

  def is_ours(node: Any) -> bool:
    return isinstance(node, MbfState | MbfAdamState)

  def moved(node: Any) -> Any:
    if isinstance(node, MbfState):
      return node._replace(count=jnp.int32(count))
    if isinstance(node, MbfAdamState):
      return node._replace(adam=node.adam._replace(count=jnp.int32(count)))
    return node

  return jax.tree.map(moved, state, is_leaf=is_ours)
