"""Runs each on its own, which on a CPU is faster than side by side in one program.

Products of matrices, with one for each run, take a CPU one and a half to two times as
long as those of one run after the other, convolutions two to four times, and a loop
over batches slows convolutions down again. A GPU wants everything at once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.steps import Carry, take
from benchmarks.paper.tasks import Batch, Metrics, Variables

Result = TypeVar("Result")


def is_faster() -> bool:
  """Whether the backend is a CPU."""
  return jax.default_backend() == "cpu"


def each(
  function: Callable[[tuple[int, ...]], Result], shape: tuple[int, ...]
) -> list[Result]:
  """``function`` of every run's index, as many runs at once as there are cores.

  A step of a small network leaves cores idle: runs at once finish sooner than in turn.
  """
  with ThreadPoolExecutor(os.cpu_count()) as executor:
    return list(executor.map(function, np.ndindex(shape)))


def select(tree: Any, run: tuple[int, ...]) -> Any:
  """A copy of one run's part of a tree; what all runs share is a scalar in it."""
  return jax.tree.map(lambda x: x[run] if x.ndim else jnp.copy(x), tree)


def beside(layout: Carry, carries: Iterable[Carry]) -> Carry:
  """All runs, from each one's carry, with the shapes of ``layout``."""

  def stacked(like: jax.ShapeDtypeStruct, *leaves: jax.Array) -> jax.Array:
    return jnp.stack(leaves).reshape(like.shape) if like.ndim else leaves[0]

  return jax.tree.map(stacked, layout, *carries)


def join(
  before: Carry, runs: Sequence[tuple[Carry, np.ndarray]]
) -> tuple[Carry, np.ndarray]:
  """What all runs are after some steps, in the layout of what they were before.

  Args:
    before: all runs.
    runs: each run's carry and its losses ``(steps,)``.

  Returns:
    All runs, and losses ``(settings, seeds, steps)``.
  """
  carries, losses = zip(*runs, strict=True)
  carry = beside(before, carries)
  shape = jax.tree.leaves(carry.variables)[0].shape[:2]
  return carry, np.stack(losses).reshape(*shape, -1)


def metrics(
  measure: Callable[[Variables, Batch], Metrics],
  slices: dict[str, Batch],
  variables: Variables,
) -> dict[str, float]:
  """One run's means of the metrics over slices ``(slices, rows, ...)`` of data."""
  means = {}
  for name, data in slices.items():
    count = len(jax.tree.leaves(data)[0])
    values = [measure(variables, take(data, index)) for index in range(count)]
    means |= {f"{name} {k}": float(np.mean([v[k] for v in values])) for k in values[0]}
  return means


def join_metrics(
  runs: Iterable[dict[str, float]], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Each run's metrics as one array ``(settings, seeds)`` by name."""
  found = list(runs)
  return {name: np.reshape([run[name] for run in found], shape) for name in found[0]}
