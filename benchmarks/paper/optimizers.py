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


def warm_factors(
  task: Task,
  tx: optax.GradientTransformation,
  state: optax.OptState,
  variables: Variables,
  batches: Iterable[Batch],
) -> optax.OptState:
  """KFAC's warm start, as an optimizer's ``prepare``: the mean factors of a pass."""
  del tx

  @jax.jit
  def factors(variables: Variables, batch: Batch, key: jax.Array) -> Any:
    return with_factors(task, variables, batch, key)[3]["factors"]()

  found = [factors(variables, b, jax.random.key(i)) for i, b in enumerate(batches)]
  return optax.tree.set(state, factors=_mean(found), weight=jnp.ones(()))


def warm_moments(
  task: Task,
  tx: optax.GradientTransformation,
  state: optax.OptState,
  variables: Variables,
  batches: Iterable[Batch],
) -> optax.OptState:
  """Shampoo's warm start, as an optimizer's ``prepare``: the mean moments of a pass."""
  del tx

  @jax.jit
  def moments(variables: Variables, batch: Batch) -> Any:
    return baselines.moments(empirical(task, variables, batch, jax.random.key(0))[2])

  found = [moments(variables, batch) for batch in batches]
  return optax.tree.set(state, statistics=_mean(found), weight=jnp.ones(()))


def _mean(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


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
