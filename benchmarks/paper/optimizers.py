"""The optimizers that several experiments share, and products of hyperparameters."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import baselines
from benchmarks.paper.methods import (
  Setting,
  empirical,
)
from benchmarks.paper.tasks import Batch, Task, Variables


def product(**values: Sequence[float]) -> list[Setting]:
  """All combinations of the values of hyperparameters."""
  combinations = itertools.product(*values.values())
  return [dict(zip(values, combination, strict=True)) for combination in combinations]


def with_factors(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """``empirical``, and how to get KFAC's factors, at targets of the network's.

  One forward pass serves both, as in Martens and Grosse (2015).
  """
  forward_key, sample_key = jax.random.split(key)
  likelihood = task.likelihood

  def outputs(params: optax.Params) -> tuple[jax.Array, Variables]:
    return likelihood.outputs({**variables, "params": params}, batch, forward_key)

  linear = baselines.linearize(outputs, variables["params"])
  value, cotangent = jax.value_and_grad(likelihood.error)(linear.outputs, batch)
  gradient, _ = linear.pull(cotangent)

  def factors() -> dict[str, baselines.Factors]:
    sampled = jax.grad(likelihood.sampled_error)(linear.outputs, sample_key)
    return linear.pull(sampled)[1]

  return value, linear.aux, gradient, {"factors": factors}


def _warm_by(field: str, measure: Callable[..., Any]) -> Callable[..., Any]:
  """An optimizer's ``prepare``: a mean over a pass takes the place of moving averages.

  Args:
    field: of the optimizer's state, beside their ``weight``.
    measure: from a task, variables, a batch and a key to one batch's entry.
  """

  def prepare(
    task: Task,
    tx: optax.GradientTransformation,
    state: optax.OptState,
    variables: Variables,
    batches: Iterable[Batch],
  ) -> optax.OptState:
    del tx
    entry = jax.jit(functools.partial(measure, task))
    total, count = None, 0
    for count, batch in enumerate(batches, 1):
      found = entry(variables, batch, jax.random.key(count))
      total = found if total is None else optax.tree.add(total, found)
    mean = optax.tree.scale(1 / count, total)
    return optax.tree.set(state, **{field: mean}, weight=jnp.ones(()))

  return prepare


warm_factors = _warm_by("factors", lambda *args: with_factors(*args)[3]["factors"]())
"""KFAC's warm start."""
warm_moments = _warm_by(
  "statistics", lambda *args: baselines.moments(empirical(*args)[2])
)
"""Shampoo's warm start."""
