"""Searches every optimizer's setting, trains with the best and times it."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.axes
import matplotlib.figure
import numpy as np
from tqdm import tqdm

from benchmarks.paper import report
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.experiment import Options
from benchmarks.paper.measure import seconds_per_step
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Runs, train


class Curve(NamedTuple):
  """Training losses to draw: a running mean, thinned to some 100 points.

  Attributes:
    steps: ``(points,)``, from 1 on.
    losses: ``(seeds, points)``.
  """

  steps: np.ndarray
  losses: np.ndarray

  @classmethod
  def of(cls, runs: Runs) -> "Curve":
    """Of the runs with one setting."""
    losses = report.smooth(runs.losses[0])
    every = max(1, losses.shape[-1] // 100)
    return cls(1 + np.arange(losses.shape[-1])[::every], losses[:, ::every])


class Outcome(NamedTuple):
  """What one optimizer reached on one task.

  Attributes:
    search: runs of every setting of its grid.
    runs: the best setting from several seeds that the search has not seen.
    seconds: of one step, trained alone.
    curve: the training losses of ``runs``.
  """

  search: Runs
  runs: Runs
  seconds: float
  curve: Curve

  @property
  def setting(self) -> Setting:
    """The best setting."""
    return self.runs.settings[0]


class Search(NamedTuple):
  """How a setting is chosen.

  Attributes:
    metric: that decides, at the end of the runs.
    largest: whether it is better the larger it is.
    seeds: runs with every setting of the grid, from seed 0 on. A setting that diverges
      from one of them is not chosen.
    finalists: the best settings of those runs, which further runs tell apart.
    final_seeds: of those further runs, after the first ones; none if there is one
      finalist.
  """

  metric: str = "train loss"
  largest: bool = False
  seeds: int = 1
  finalists: int = 1
  final_seeds: int = 0

  def runs(self, optimizer: Optimizer) -> int:
    """How many runs an optimizer's search takes."""
    finalists = min(self.finalists, len(optimizer.settings))
    return len(optimizer.settings) * self.seeds + finalists * self.final_seeds

  def ranked(self, runs: Runs) -> list[int]:
    """Indices of the settings, the best first."""
    return runs.ranked(self.metric, self.largest)


BY_LOSS = Search()


class Session:
  """Trainings of one experiment: their progress bar and their checkpoints.

  Attributes:
    options: of the experiment.
    name: of the experiment.
    bar: counts steps of single runs.
  """

  def __init__(self, options: Options, name: str, total: int):
    self.options, self.name = options, name
    self.bar = tqdm(total=total, unit="step", unit_scale=True, smoothing=0.05)
    self._folders: set[pathlib.Path] = set()

  def train(
    self, label: str, task: Task, optimizer: Optimizer, **arguments: Any
  ) -> Runs:
    """:func:`benchmarks.paper.training.train`, with checkpoints under ``label``."""
    self.bar.set_description(f"{task.name}, {label}")
    folder = pathlib.Path(self.options.work) / "checkpoints" / self.name
    folder = folder / self.options.scale / f"{task.name}-{label}".replace(" ", "_")
    if folder in self._folders:
      raise ValueError(f"{task.name}, {label}: two trainings would share {folder}.")
    self._folders.add(folder)
    interval = 600 if self.options.scale == "paper" else 60
    checkpoint = Checkpoint(folder, self.options.resume, interval)
    return train(task, optimizer, bar=self.bar, checkpoint=checkpoint, **arguments)


@contextlib.contextmanager
def session(options: Options, name: str, total: int) -> Iterator[Session]:
  """A session that closes its progress bar.

  Args:
    options: of the experiment.
    name: of the experiment.
    total: steps of all runs together, for the estimate of what remains.
  """
  opened = Session(options, name, total)
  try:
    yield opened
  finally:
    opened.bar.close()


def work(
  task: Task,
  optimizers: Mapping[str, Optimizer],
  seeds: int,
  search: Search = BY_LOSS,
) -> int:
  """Steps of single runs that :func:`compare` takes."""
  return sum(o.steps_of(task) * (search.runs(o) + seeds) for o in optimizers.values())


def compare(
  task: Task,
  optimizers: Mapping[str, Optimizer],
  seeds: int,
  session: Session,
  search: Search = BY_LOSS,
  points: int = 10,
) -> dict[str, Outcome]:
  """Searches, trains and times every optimizer.

  Args:
    task: what to train.
    optimizers: by name.
    seeds: runs with the chosen setting, from seeds that the search has not seen.
    session: of the experiment.
    search: how the setting is chosen.
    points: how many times metrics are taken in a run; once in those of the search.

  Returns:
    Outcomes by name.
  """
  searches, runs = {}, {}
  unseen = search.seeds + search.final_seeds
  for name, optimizer in optimizers.items():
    trained = functools.partial(session.train, task=task, optimizer=optimizer)
    searched = functools.partial(trained, points=1, chunks=points)
    searches[name] = searched(f"{name} search", seeds=range(search.seeds))
    ranked = [optimizer.settings[i] for i in search.ranked(searches[name])]
    best = ranked[: search.finalists]
    if search.final_seeds:
      seen = range(search.seeds, unseen)
      finals = searched(f"{name} finals", settings=best, seeds=seen)
      best = [best[i] for i in search.ranked(finals)]
    seeded = range(unseen, unseen + seeds)
    runs[name] = trained(
      f"{name} seeds", settings=best[:1], seeds=seeded, points=points
    )
  timed = {name: (o, runs[name].settings[0]) for name, o in optimizers.items()}
  seconds = seconds_per_step(task, timed, length=min(100, task.steps))
  return {
    n: Outcome(searches[n], runs[n], seconds[n], Curve.of(runs[n])) for n in optimizers
  }


def at_equal_seconds(outcome: Outcome, seconds: float, metric: str) -> np.ndarray:
  """``(seeds,)``: a metric when ``seconds`` of training have passed, or at the end."""
  times = outcome.runs.at * outcome.seconds
  reached = [np.interp(seconds, times, run) for run in outcome.runs.metrics[metric][0]]
  return np.array(reached)


def on_grid_edge(outcome: Outcome) -> list[str]:
  """Hyperparameters whose best value is the smallest or largest that was tried."""
  edges = []
  for name, value in outcome.setting.items():
    tried = [setting[name] for setting in outcome.search.settings]
    if min(tried) < max(tried) and value in (min(tried), max(tried)):
      edges.append(name)
  return edges


def comparison_table(
  outcomes: Mapping[str, Outcome],
  metrics: Mapping[str, str],
  budget: str = "adam",
) -> str:
  """One row for each optimizer: setting, metrics at equal steps and equal seconds.

  Args:
    outcomes: by name.
    metrics: formats by metric; the first is also given at equal seconds.
    budget: the optimizer whose whole training says how many seconds those are.
  """
  first, form = next(iter(metrics.items()))
  steps = int(next(iter(outcomes.values())).runs.at[-1])
  seconds = outcomes[budget].seconds * steps
  titles = [
    "optimizer",
    "setting",
    *metrics,
    "ms a step",
    f"{first} in {seconds:.3g} s",
  ]
  rows = []
  for name, outcome in outcomes.items():
    setting = ", ".join(
      f"{value:.4g}" + ("*" if key in on_grid_edge(outcome) else "")
      for key, value in outcome.setting.items()
    )
    cells = [report.spread(outcome.runs.final(m), f) for m, f in metrics.items()]
    in_time = report.spread(at_equal_seconds(outcome, seconds, first), form)
    rows.append([name, setting, *cells, f"{1e3 * outcome.seconds:.1f}", in_time])
  return report.table(titles, rows)


def comparison_figure(
  outcomes: Mapping[str, Mapping[str, Outcome]],
  metrics: Sequence[str] = (),
) -> matplotlib.figure.Figure:
  """Training loss against steps and seconds, and metrics, one row for each task."""
  columns = 2 + len(metrics)
  figure, grid = report.axes(len(outcomes), columns, width=4.2)
  for row, (task, results) in zip(grid, outcomes.items(), strict=True):
    lasted = [o.seconds * o.runs.at[-1] for o in results.values()]
    colors = report.colors(results)
    for name, outcome in results.items():
      style = {"label": name, "color": colors[name]}
      steps, losses = outcome.curve
      report.curve(row[0], steps, losses, **style)
      report.curve(row[1], steps * outcome.seconds, losses, **style)
      for ax, metric in zip(row[2:], metrics, strict=True):
        report.curve(ax, outcome.runs.at, outcome.runs.metrics[metric][0], **style)
    row[0].set(xlabel="steps", ylabel=f"{task}: training loss")
    row[1].set(xlabel="seconds", xlim=(0, min(4 * min(lasted), max(lasted))))
    _around(row[:2], [o.curve.losses for o in results.values()])
    for ax, metric in zip(row[2:], metrics, strict=True):
      ax.set(xlabel="steps", ylabel=metric)
      values = [o.runs.metrics[metric][0] for o in results.values()]
      if metric.endswith("loss"):
        _around([ax], values)
      else:  # the first one, of an untrained network, would hide all differences
        ax.set_ylim(bottom=min(float(np.nanmin(v[:, 1:])) for v in values))
    row[-1].legend(frameon=False, fontsize=8)
  return figure


def _around(axes: Sequence[matplotlib.axes.Axes], losses: Sequence[np.ndarray]) -> None:
  """Logarithmic, to a little above the first losses: no divergence hides the rest."""
  lowest = min(float(np.nanmin(values)) for values in losses)
  first = max(float(values[:, 0].max()) for values in losses)
  for ax in axes:
    ax.set_ylim(0.95 * lowest, 1.1 * first)
    report.log_scale(ax)


def record(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
  """The outcomes as plain data."""
  return {name: _record(outcome) for name, outcome in outcomes.items()}


def _record(outcome: Outcome) -> dict[str, Any]:
  return {
    "setting": outcome.setting,
    "grid edge": on_grid_edge(outcome),
    "seconds a step": outcome.seconds,
    "search": [
      {**setting, **{m: v[i, :, -1].mean() for m, v in outcome.search.metrics.items()}}
      for i, setting in enumerate(outcome.search.settings)
    ],
    "steps": outcome.runs.at,
    "metrics": {m: v[0] for m, v in outcome.runs.metrics.items()},
    "curve": {"steps": outcome.curve.steps, "losses": outcome.curve.losses},
  }


def restored(kept: Mapping[str, Any]) -> dict[str, Outcome]:
  """Inverse of :func:`record`, as far as tables and pictures need it."""
  return {name: _restored(entry) for name, entry in kept.items()}


def _restored(entry: Mapping[str, Any]) -> Outcome:
  metrics = {name: _array(values)[None] for name, values in entry["metrics"].items()}
  curve = Curve(np.array(entry["curve"]["steps"]), _array(entry["curve"]["losses"]))
  at, none = np.array(entry["steps"]), np.zeros((0, 0, 0))
  settings, finals = [], []
  for tried in entry["search"]:
    settings.append({key: tried[key] for key in entry["setting"]})
    finals.append([tried[name] for name in metrics])
  searched = dict(zip(metrics, _array(finals).T[..., None, None], strict=True))
  return Outcome(
    Runs(settings, none, at[-1:], searched),
    Runs([entry["setting"]], none, at, metrics),
    entry["seconds a step"],
    curve,
  )


def _array(values: Any) -> np.ndarray:
  """What was not finite was kept as null."""
  return np.array(values, float)
