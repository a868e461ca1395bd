"""The methods of the comparisons, and what is searched of each.

Every method has a rate, and beside it what its own authors tune: Adam and those like it
their second decay, muon a rate for everything that is no matrix, methods with matrices
their damping. Where an inverse divides by a damping, the rate is searched as a multiple
of it, ``ratio``. Where weights decay, what they lose a step at the first rate,
``shrinkage``, is searched for all alike.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.baselines import common
from benchmarks.paper.methods import (
  Gradient,
  Optimizer,
  Setting,
  empirical,
  warm,
  with_sampled,
)
from benchmarks.paper.optimizers import warm_factors, warm_moments, with_factors
from benchmarks.paper.search import half_decades, neighbours

Build = Callable[..., optax.GradientTransformation]

LADDERS: dict[str, tuple[float, ...]] = {
  "learning_rate": half_decades(1e-6, 30),
  "other_learning_rate": half_decades(1e-5, 1),
  "ratio": half_decades(1e-3, 30),
  "damping": half_decades(1e-7, 30),
  "shrinkage": half_decades(1e-5, 3e-2),
  "b2": (0.9, 0.95, 0.99, 0.999),
  "curvature_ema": (0.9, 0.95, 0.99),
  "momentum": (0.5, 0.9, 0.97),
  "beta": (0.9, 0.95, 0.98),
}
"""Values to search, by hyperparameter."""


class Rival(NamedTuple):
  """A method.

  Attributes:
    build: from its hyperparameters, a rate and a decoupled decay among them.
    gradient: what a step computes.
    prepare: its warm start.
    period: name of the period of its statistics.
  """

  build: Build
  gradient: Gradient = empirical
  prepare: Callable[..., Any] | None = None
  period: str = ""


def _sgd(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: jax.typing.ArrayLike,
  momentum: jax.typing.ArrayLike = 0.9,
) -> optax.GradientTransformation:
  return common.descend(optax.trace(momentum), learning_rate, weight_decay)


def _kfac(**settings: Any) -> Rival:
  build = functools.partial(baselines.kfac, **settings)
  return Rival(build, with_factors, period="factor_update_period")


def periods(rival: Rival, statistics: int, inverse: int, start: Any = None) -> Rival:
  """The method with other periods, and with a warm start.

  Args:
    rival: a method.
    statistics: updates between renewals of its statistics.
    inverse: of its inverses or roots.
    start: the warm start; ``None`` is a start at zero.
  """
  settings = {rival.period: statistics, "inverse_update_period": inverse}
  return rival._replace(build=functools.partial(rival.build, **settings), prepare=start)


_SHAMPOO = Rival(baselines.shampoo, period="statistics_update_period")
_MBF = Rival(mbf_optax.mbf, period="curvature_update_period")
_BY_SPLIT = {split: _kfac(split=split) for split in ("equal", "none")}
_BY_KERNEL = {"partition": mbf_optax.flax_partition(overrides=[("Conv", "conv")])}
# mbf_adam renews inverses at about every tenth step.
_GRAFTED_PERIOD = {"inverse_update_period": 10}

RIVALS: dict[str, Rival] = {
  "sgd": Rival(_sgd),
  "adam": Rival(optax.adamw),
  "nadam": Rival(optax.nadamw),
  "muon": Rival(baselines.muon),
  "soap": Rival(baselines.soap),
  "shampoo (1, 2)": periods(_SHAMPOO, 1, 2),
  "shampoo (1, 20), warm": periods(_SHAMPOO, 1, 20, warm_moments),
  "shampoo (10, 100), warm": periods(_SHAMPOO, 10, 100, warm_moments),
  "shampoo on adam": Rival(
    functools.partial(baselines.shampoo_adam, **_GRAFTED_PERIOD)
  ),
  "kfac (1, 2)": periods(_BY_SPLIT["equal"], 1, 2),
  "kfac (1, 20), warm": periods(_BY_SPLIT["equal"], 1, 20, warm_factors),
  "kfac, convolutions (1, 2)": periods(_BY_SPLIT["none"], 1, 2),
  "kfac, convolutions (10, 100), warm": periods(
    _BY_SPLIT["none"], 10, 100, warm_factors
  ),
  "kfac on adam": Rival(
    functools.partial(baselines.kfac_adam, split="trace", **_GRAFTED_PERIOD),
    with_factors,
  ),
  "mbf": _MBF,
  "mbf (1, 20), warm": periods(_MBF, 1, 20, warm),
  "mbf (10, 100), warm": periods(_MBF, 10, 100, warm),
  "mbf_true": Rival(mbf_optax.mbf, with_sampled),
  "mbf_adam": Rival(mbf_optax.mbf_adam),
  "mbf_adam, nesterov": Rival(functools.partial(mbf_optax.mbf_adam, nesterov=True)),
  "mbf_adam, by kernel": Rival(functools.partial(mbf_optax.mbf_adam, **_BY_KERNEL)),
  "mbf_adam, nesterov, by kernel": Rival(
    functools.partial(mbf_optax.mbf_adam, nesterov=True, **_BY_KERNEL)
  ),
  "mbf_adam, two rates": Rival(baselines.mbf_adam_two_rates),
  "momentum on adam": Rival(baselines.momentum_adam),
  "mbf on adam": Rival(functools.partial(baselines.mbf_on_adam, **_GRAFTED_PERIOD)),
  "mbf on adam, by block": Rival(
    functools.partial(baselines.mbf_on_adam, lengths="block", **_GRAFTED_PERIOD)
  ),
}
"""The methods by name, with the periods of statistics and inverses that they run at."""


def around(start: Setting) -> list[Setting]:
  """A setting and its neighbours on :data:`LADDERS`."""
  return [start, *neighbours(start, _ladders(start))]


def optimizer(
  name: str,
  settings: Sequence[Setting],
  widened: bool = True,
  scheduled: Callable[[Build], Build] = lambda build: build,
  steps: int | None = None,
  **fixed: Any,
) -> Optimizer:
  """A method of :data:`RIVALS` with settings to try it with.

  Args:
    name: of the method.
    settings: its first ones.
    widened: whether a search goes on along :data:`LADDERS`.
    scheduled: gives the built method a schedule instead of a rate.
    steps: number of updates; ``None`` is the task's.
    **fixed: hyperparameters that are not searched.
  """
  rival = RIVALS[name]
  searched = settings[0]
  if not {"shrinkage", "weight_decay"} & {*searched, *fixed}:
    fixed["weight_decay"] = 0.0
  build = scheduled(functools.partial(rival.build, **fixed))
  if "shrinkage" in searched:
    build = by_shrinkage(build)
  if "ratio" in searched:
    build = by_ratio(build)
  return Optimizer(
    build,
    settings,
    rival.gradient,
    rival.prepare,
    steps=steps,
    ladders=_ladders(searched) if widened else {},
  )


def _ladders(setting: Setting) -> Mapping[str, Sequence[float]]:
  return {name: LADDERS[name] for name in setting}


def by_ratio(build: Build) -> Build:
  """``build`` from a damping and a rate that is a multiple of it."""

  def built(
    ratio: jax.Array, damping: jax.Array, **setting: jax.Array
  ) -> optax.GradientTransformation:
    return build(learning_rate=ratio * damping, damping=damping, **setting)

  return built


def by_shrinkage(build: Build) -> Build:
  """``build`` from a rate and the share of the weights that decays at a step of it."""

  def built(
    learning_rate: jax.Array, shrinkage: jax.Array, **setting: jax.Array
  ) -> optax.GradientTransformation:
    decays = {"weight_decay": shrinkage / learning_rate}
    if "other_learning_rate" in setting:
      decays["other_weight_decay"] = shrinkage / setting["other_learning_rate"]
    return build(learning_rate=learning_rate, **decays, **setting)

  return built


def with_schedule(
  build: Build, schedule: Callable[[jax.Array, jax.Array], jax.Array]
) -> Build:
  """``build`` with rates that a schedule makes of the given ones.

  Args:
    build: from hyperparameters, of which some are rates.
    schedule: from such a rate and the count of steps to the rate of a step.
  """

  def built(**setting: jax.Array) -> optax.GradientTransformation:
    rates = {key for key in setting if key.endswith("learning_rate")}
    scheduled = {key: functools.partial(schedule, setting[key]) for key in rates}
    return build(**{**setting, **scheduled})

  return built
