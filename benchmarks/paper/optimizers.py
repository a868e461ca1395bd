"""The optimizers that several experiments share, and products of hyperparameters."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
  """``empirical``, and KFAC's factors at targets sampled from the network."""
  loss_key, sample_key = jax.random.split(key)
  value, mutable, gradient, _ = empirical(task, variables, batch, loss_key)
  loss = sampled_loss(task, variables, batch, sample_key)
  factors = baselines.capture(loss, variables["params"]).factors
  return value, mutable, gradient, {"factors": factors}


# The paper's periods on autoencoders (Ren & Goldfarb, 2021).
_PAPER_MBF = functools.partial(
  mbf_optax.mbf, curvature_update_period=1, inverse_update_period=20
)
_SGD = functools.partial(optax.sgd, momentum=0.9)

OPTIMIZERS: dict[str, Callable[[Sequence[Setting]], Optimizer]] = {
  "sgd": lambda settings: Optimizer(_SGD, settings),
  "adam": lambda settings: Optimizer(optax.adam, settings),
  "shampoo": lambda settings: Optimizer(baselines.shampoo, settings),
  "kfac": lambda settings: Optimizer(baselines.kfac, settings, with_factors),
  "muon": lambda settings: Optimizer(optax.contrib.muon, settings),
  "mbf": lambda settings: Optimizer(mbf_optax.mbf, settings),
  "mbf (1, 20), warm": lambda settings: Optimizer(_PAPER_MBF, settings, prepare=warm),
  "mbf_true": lambda settings: Optimizer(mbf_optax.mbf, settings, with_sampled),
  "mbf_adam": lambda settings: Optimizer(mbf_optax.mbf_adam, settings),
}
"""Optimizers by name, from the settings to try them with."""
