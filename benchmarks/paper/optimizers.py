"""The optimizers that several experiments share, and products of hyperparameters."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.paper.methods import (
  Optimizer,
  Setting,
  empirical,
  sampled_loss,
  warm,
  with_sampled,
)
from benchmarks.paper.tasks import Batch, Task, Variables


def product(**values: Sequence[float]) -> list[Setting]:
  """All combinations of the values of hyperparameters."""
  combinations = itertools.product(*values.values())
  return [dict(zip(values, combination, strict=True)) for combination in combinations]


def with_ratio(damping: Sequence[float], ratio: Sequence[float]) -> list[Setting]:
  """Dampings, and every one with learning rates that are multiples of it."""
  return [{"learning_rate": r * d, "damping": d} for d in damping for r in ratio]


def with_factors(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """``empirical``, and how to get KFAC's factors, at targets of the network's."""
  loss_key, sample_key = jax.random.split(key)
  value, mutable, gradient, _ = empirical(task, variables, batch, loss_key)
  loss = sampled_loss(task, variables, batch, sample_key)

  def factors() -> dict[str, baselines.Factors]:
    return baselines.capture(loss, variables["params"]).factors

  return value, mutable, gradient, {"factors": factors}


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
    found = [entry(variables, b, jax.random.key(i)) for i, b in enumerate(batches)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    return optax.tree.set(state, **{field: mean}, weight=jnp.ones(()))

  return prepare


warm_factors = _warm_by("factors", lambda *args: with_factors(*args)[3]["factors"]())
"""KFAC's warm start."""
warm_moments = _warm_by(
  "statistics", lambda *args: baselines.moments(empirical(*args)[2])
)
"""Shampoo's warm start."""


# The paper's periods on autoencoders (Ren & Goldfarb, 2021).
_PAPER_MBF = functools.partial(
  mbf_optax.mbf, curvature_update_period=1, inverse_update_period=20
)
_SGD = functools.partial(optax.sgd, momentum=0.9)

OPTIMIZERS: dict[str, Callable[[Sequence[Setting]], Optimizer]] = {
  "sgd": lambda settings: Optimizer(_SGD, settings),
  "adam": lambda settings: Optimizer(optax.adam, settings),
  "shampoo": lambda settings: Optimizer(
    baselines.shampoo, settings, prepare=warm_moments
  ),
  "kfac": lambda settings: Optimizer(
    baselines.kfac, settings, with_factors, warm_factors
  ),
  "muon": lambda settings: Optimizer(optax.contrib.muon, settings),
  "mbf": lambda settings: Optimizer(mbf_optax.mbf, settings),
  "mbf (1, 20), warm": lambda settings: Optimizer(_PAPER_MBF, settings, prepare=warm),
  "mbf_true": lambda settings: Optimizer(mbf_optax.mbf, settings, with_sampled),
  "mbf_adam": lambda settings: Optimizer(mbf_optax.mbf_adam, settings),
}
"""Optimizers by name, from the settings to try them with."""
