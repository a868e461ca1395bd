"""Each optimizer's losses over Adam's, with standard errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]
BySeed = Mapping[int, Record]
ByOptimizer = dict[str, dict[int, Record]]


class Ratio(NamedTuple):
  """A ratio of means over seeds and its standard error, NaN for a single seed.

  Infinite where a training diverged.
  """

  value: float
  error: float


def grouped(records: Iterable[Record]) -> dict[str, ByOptimizer]:
  """Records by problem, optimizer and seed."""
  groups: dict[str, ByOptimizer] = {}
  for record in records:
    problem = groups.setdefault(record["problem"], {})
    problem.setdefault(record["optimizer"], {})[record["seed"]] = record
  return groups


def at_equal_steps(own: BySeed, adam: BySeed) -> Ratio:
  """The held-out loss at the end, over Adam's."""
  seeds = _common(own, adam)
  return ratio(
    [_number(own[seed]["held_out"][-1]) for seed in seeds],
    [_number(adam[seed]["held_out"][-1]) for seed in seeds],
  )


def at_equal_seconds(own: BySeed, adam: BySeed) -> Ratio:
  """The held-out loss after as many seconds as Adam's training took, over Adam's.

  How many that is, is the median over seeds, whose trainings took turns. The loss
  between two measurements is interpolated. A method that is faster than Adam is taken
  at its end.
  """
  seeds = _common(own, adam)
  shares = [adam[seed]["seconds"] / own[seed]["seconds"] for seed in seeds]
  share = min(1.0, float(np.median(shares)))

  def reached(losses: Sequence[float | None]) -> float:
    places = np.linspace(0, 1, len(losses))
    return float(np.interp(share, places, [_number(loss) for loss in losses]))

  return ratio(
    [reached(own[seed]["held_out"]) for seed in seeds],
    [_number(adam[seed]["held_out"][-1]) for seed in seeds],
  )


def first_steps(own: BySeed, adam: BySeed) -> Ratio:
  """The mean training loss of the first 20 steps, over Adam's."""
  seeds = _common(own, adam)
  return ratio(
    [_number(own[seed]["first"]) for seed in seeds],
    [_number(adam[seed]["first"]) for seed in seeds],
  )


def ratio(own: Sequence[float], base: Sequence[float]) -> Ratio:
  """The ratio of two means, and its standard error by the delta method.

  Args:
    own: one value for every seed.
    base: of the same seeds in the same order. Pairs share their start and batches, so
      what they have in common cancels.
  """
  if not np.isfinite([*own, *base]).all():
    return Ratio(math.inf, math.nan)
  value = float(np.mean(own) / np.mean(base))
  if len(own) < 2:
    return Ratio(value, math.nan)
  left = np.asarray(own) - value * np.asarray(base)
  deviation = np.std(left, ddof=1) / math.sqrt(len(own))
  return Ratio(value, float(deviation / abs(np.mean(base))))


def quotient(own: Ratio, base: Ratio) -> Ratio:
  """Of two means that are taken as independent, by the delta method."""
  value = own.value / base.value
  return Ratio(value, math.hypot(own.error, value * base.error) / abs(base.value))


def geometric_mean(ratios: Sequence[Ratio]) -> Ratio:
  """The geometric mean over problems, with the standard error that the seeds leave."""
  mean = float(np.exp(np.mean([math.log(ratio.value) for ratio in ratios])))
  relative = [ratio.error / ratio.value for ratio in ratios]
  return Ratio(mean, mean * float(np.sqrt(np.sum(np.square(relative)))) / len(ratios))


def mean(values: Sequence[float]) -> Ratio:
  """A mean and its standard error."""
  if len(values) < 2:
    return Ratio(float(np.mean(values)), math.nan)
  error = np.std(values, ddof=1) / math.sqrt(len(values))
  return Ratio(float(np.mean(values)), float(error))


def _common(own: BySeed, adam: BySeed) -> list[int]:
  return sorted(set(own) & set(adam))


def _number(value: float | None) -> float:
  """JSON has null for what is not finite."""
  return math.inf if value is None else value
