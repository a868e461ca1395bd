"""How a setting is chosen: by held-out data, and with every neighbour of it tried.

One rule for all methods. A search begins with an optimizer's settings. As long as the
best of what was tried has a neighbour on its ladders that was not, a step up or down in
one hyperparameter, the neighbours are tried too. So every method has the same settings
around its own best, wherever its first ones were.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.training import Runs

Ladders = Mapping[str, Sequence[float]]


class Search(NamedTuple):
  """How a setting is chosen.

  Attributes:
    metric: that decides, at the end of the runs.
    largest: whether it is better the larger it is.
    seeds: runs with every setting, from seed 0 on. A setting that diverges from one of
      them is not chosen, unless all do.
    rounds: how many times neighbours are tried.
  """

  metric: str = "valid loss"
  largest: bool = False
  seeds: int = 1
  rounds: int = 6

  def best(self, runs: Runs) -> Setting:
    """The best of the settings that were tried."""
    return runs.settings[runs.best(self.metric, self.largest)]


def half_decades(low: float, high: float) -> tuple[float, ...]:
  """``1, 3, 10, 30, ...`` times a power of ten, from ``low`` to ``high``."""
  exponents = range(round(np.floor(np.log10(low))), round(np.ceil(np.log10(high))) + 1)
  values = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 3)]
  return tuple(value for value in values if low <= value <= high)


def neighbours(setting: Setting, ladders: Ladders) -> list[Setting]:
  """The settings one step away in one hyperparameter.

  Raises:
    ValueError: if a value is not on its ladder.
  """
  found = []
  for name, ladder in ladders.items():
    place = list(ladder).index(setting[name])
    for near in (place - 1, place + 1):
      if 0 <= near < len(ladder):
        found.append({**setting, name: ladder[near]})
  return found


def untried(setting: Setting, tried: Sequence[Setting], ladders: Ladders) -> list[str]:
  """Hyperparameters in which a step up or down was not tried.

  A value at the end of its ladder has no further step, and is named too.
  """
  found = []
  for name, ladder in ladders.items():
    near = [s for s in neighbours(setting, {name: ladder}) if s in tried]
    if len(near) < 2 <= len(ladder):
      found.append(name)
  return found


def grid(settings: Sequence[Setting]) -> Ladders:
  """The values of a grid of settings, as ladders that go no further."""
  return {name: sorted({s[name] for s in settings}) for name in settings[0]}


def searched(
  train: Callable[..., Runs], name: str, optimizer: Optimizer, search: Search
) -> Runs:
  """Runs with the optimizer's settings, and with the neighbours of the best ones.

  Args:
    train: from a label and ``settings`` to runs.
    name: of the optimizer.
    optimizer: what is searched.
    search: how the best is found.

  Returns:
    All runs.
  """
  found = train(f"{name} search", settings=list(optimizer.settings))
  for number in range(search.rounds):
    near = neighbours(search.best(found), optimizer.ladders)
    more = [setting for setting in near if setting not in found.settings]
    if not more:
      break
    found = _joined(found, train(f"{name} search {number + 1}", settings=more))
  return found


def _joined(first: Runs, second: Runs) -> Runs:
  """Runs with the settings of both."""
  return Runs(
    [*first.settings, *second.settings],
    np.concatenate([first.losses, second.losses]),
    first.at,
    {k: np.concatenate([v, second.metrics[k]]) for k, v in first.metrics.items()},
  )
