"""Figure 12: periods of statistics and inverses, cold and after a warm start.

Where does a stale inverse diverge, and what does a fresh one buy at equal steps and at
equal seconds?
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optax

import mbf_optax
from benchmarks.paper import comparison, problems, report
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.measure import seconds_per_step
from benchmarks.paper.methods import Optimizer, Setting, warm
from benchmarks.paper.optimizers import product, with_ratio
from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Runs

PERIODS = ((1, 1), (1, 2), (1, 5), (1, 20), (10, 10), (10, 100))
STARTS = ("cold", "warm")
_GRIDS: dict[Scale, dict[str, list[Setting]]] = {
  "quick": {
    "mnist": product(learning_rate=[1e-3], damping=[1e-2, 1e-1]),
  },
  "cpu": {
    "mnist": product(learning_rate=[1e-5, 1e-4, 1e-3], damping=[3e-4, 3e-3, 1e-2]),
    "convnet": with_ratio([3e-5, 3e-4, 3e-3], [0.1, 0.3, 1.0]),
    "transformer": with_ratio([1e-5, 1e-3], [0.3, 1.0]),
  },
  "paper": {
    "mnist": product(
      learning_rate=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3], damping=[3e-4, 1e-3, 3e-3, 1e-2]
    ),
    "convnet": with_ratio([3e-5, 1e-4, 3e-4, 1e-3, 3e-3], [0.1, 0.3, 1.0, 3.0]),
    "transformer": with_ratio([1e-5, 1e-4, 1e-3, 1e-2], [0.1, 0.3, 1.0, 3.0]),
  },
}
_SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 1, "paper": 5}


class Outcome(NamedTuple):
  """All settings of one pair of periods, from one kind of start.

  Attributes:
    runs: of every setting of the grid.
    seconds: of a step.
  """

  runs: Runs
  seconds: float

  @property
  def losses(self) -> np.ndarray:
    """``(seeds, points)``: training loss of the best setting."""
    return self.runs.metrics["train loss"][self.runs.best()]

  def diverged(self) -> int:
    """Runs that end with a loss that is NaN or above their first one."""
    return int((~(self.runs.final("train loss") < self.runs.losses[..., 0])).sum())

  def after(self, seconds: float) -> np.ndarray:
    """``(seeds,)``: training loss of the best setting after ``seconds``."""
    times = self.runs.at * self.seconds
    return np.array([np.interp(seconds, times, losses) for losses in self.losses])


Outcomes = dict[tuple[tuple[int, int], str], Outcome]


def run(options: Options) -> Report:
  """Trains every grid at every pair of periods, cold and warm, and times the steps."""
  grids, seeds = _GRIDS[options.scale], _SEEDS[options.scale]
  tasks = {name: _task(name, options) for name in grids}
  runs = seeds * len(PERIODS) * len(STARTS)
  total = sum(runs * len(grids[n]) * task.steps for n, task in tasks.items())
  with comparison.session(options, "frequencies", total) as session:
    outcomes = {n: _train(t, grids[n], seeds, session) for n, t in tasks.items()}
  text = "\n\n".join(_section(name, results) for name, results in outcomes.items())
  record = {name: _record(results) for name, results in outcomes.items()}
  return Report(text, record, {"periods": _figure(outcomes)})


def _task(name: str, options: Options) -> Task:
  if name == "mnist":
    return problems.autoencoder(name, options)
  return {"convnet": problems.convnet, "transformer": problems.transformer}[name](
    options
  )


def _build(
  learning_rate: float, damping: float, statistics: int, inverse: int
) -> optax.GradientTransformation:
  return mbf_optax.mbf(
    learning_rate,
    damping,
    curvature_update_period=statistics,
    inverse_update_period=inverse,
  )


def _train(
  task: Task, grid: list[Setting], seeds: int, session: comparison.Session
) -> Outcomes:
  """Every pair of periods and start; all of them share what is compiled."""
  common = ("statistics", "inverse")
  starts = {
    "cold": Optimizer(_build, grid, common=common),
    "warm": Optimizer(_build, grid, prepare=warm, common=common),
  }
  runs: dict[tuple[tuple[int, int], str], Runs] = {}
  for periods in PERIODS:
    settings = [{**s, **dict(zip(common, periods, strict=True))} for s in grid]
    for start in STARTS:
      runs[periods, start] = session.train(
        f"{periods} {start}",
        task,
        starts[start],
        settings=settings,
        seeds=range(seeds),
      )
  settings = {p: r.settings[r.best()] for (p, s), r in runs.items() if s == "cold"}
  timed = {str(p): (starts["cold"], setting) for p, setting in settings.items()}
  seconds = seconds_per_step(task, timed, rounds=2, length=min(100, task.steps))
  return {key: Outcome(r, seconds[str(key[0])]) for key, r in runs.items()}


def _section(name: str, outcomes: Outcomes) -> str:
  """One row for each pair of periods."""
  steps = int(next(iter(outcomes.values())).runs.at[-1])
  budget = steps * min(outcome.seconds for outcome in outcomes.values())
  rows = []
  for periods in PERIODS:
    cells = [str(periods)]
    for start in STARTS:
      outcome = outcomes[periods, start]
      best = outcome.runs.settings[outcome.runs.best()]
      count = outcome.runs.losses[..., 0].size
      cells += [
        f"{report.spread(outcome.losses[:, -1])} ({_grid_point(best)})",
        f"{outcome.diverged()} of {count}",
        report.spread(outcome.after(budget)),
      ]
    rows.append([*cells, f"{1e3 * outcomes[periods, 'cold'].seconds:.1f}"])
  titles = ["T1, T2"]
  for start in STARTS:
    titles += [f"{start}: loss", "diverged", f"loss in {budget:.3g} s"]
  table = report.table([*titles, "ms a step"], rows)
  return f"### {name}, {steps} steps\n\n{table}"


def _grid_point(setting: Mapping[str, float]) -> str:
  return f"{setting['learning_rate']:g}, {setting['damping']:g}"


def _figure(outcomes: Mapping[str, Outcomes]) -> matplotlib.figure.Figure:
  """Losses of every setting by periods, and the best one's against steps, seconds."""
  figure, grid = report.axes(len(outcomes), 3, width=4.2)
  for row, (name, results) in zip(grid, outcomes.items(), strict=True):
    for offset, (start, marker) in enumerate(zip(STARTS, "ox", strict=True)):
      for place, periods in enumerate(PERIODS):
        losses = results[periods, start].runs.final("train loss").ravel()
        row[0].plot(
          np.full(losses.shape, place + 0.3 * offset - 0.15),
          losses,
          marker,
          color=f"C{place}",
          label=f"{start} start" if not place else None,
        )
    for place, periods in enumerate(PERIODS):
      outcome = results[periods, "cold"]
      style = {"label": f"{periods}", "color": f"C{place}"}
      losses = report.smooth(outcome.runs.losses[outcome.runs.best()])
      steps = 1 + np.arange(losses.shape[-1])
      report.curve(row[1], steps, losses, **style)
      report.curve(row[2], steps * outcome.seconds, losses, **style)
    longest = max(o.seconds for o in results.values()) * len(steps)
    row[0].set(ylabel=f"{name}: training loss", xticks=range(len(PERIODS)))
    row[0].set_xticklabels([f"{a},{b}" for a, b in PERIODS])
    row[0].set_xlabel("T1,T2; one mark for each setting")
    row[1].set(xlabel="steps (best setting, cold)")
    row[2].set(xlabel="seconds (best setting, cold)", xlim=(0, longest))
    for ax in row:
      report.log_scale(ax)
    row[0].legend(frameon=False, fontsize=8)
    row[2].legend(frameon=False, fontsize=8)
  return figure


def _record(outcomes: Outcomes) -> dict[str, Any]:
  return {
    f"{periods} {start}": {
      "seconds a step": outcome.seconds,
      "grid": [
        {**setting, "train loss": losses}
        for setting, losses in zip(
          outcome.runs.settings, outcome.runs.final("train loss"), strict=True
        )
      ],
      "steps": outcome.runs.at,
      "best setting": outcome.losses,
    }
    for (periods, start), outcome in outcomes.items()
  }
