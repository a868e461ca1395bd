"""Searches every optimizer's setting, trains with the best, times it, and keeps it all.

The protocol of every comparison: settings are chosen by held-out data that is not the
reported one (:mod:`~benchmarks.paper.search`), from seeds that are not the reported
ones; a warm start counts as so many steps, and all that a step of a method needs is in
its seconds.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.paper import exponents, report
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.experiment import Options
from benchmarks.paper.measure import seconds_per_step
from benchmarks.paper.methods import Optimizer, Setting
from benchmarks.paper.search import Search, grid, searched, untried
from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Runs, train


class Curve(NamedTuple):
  """Training losses to draw: a running mean, thinned to some 50 points.

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
    every = max(1, losses.shape[-1] // 50)
    return cls(1 + np.arange(losses.shape[-1])[::every], losses[:, ::every])


class Outcome(NamedTuple):
  """What one optimizer reached on one task.

  Attributes:
    search: runs of every setting that was tried.
    runs: the best setting from several seeds that the search has not seen.
    seconds: of one step, trained alone.
    curve: the training losses of ``runs``.
    untried: hyperparameters in which a neighbour of the best setting was not tried.
    warm: steps that a warm start counts as.
  """

  search: Runs
  runs: Runs
  seconds: float
  curve: Curve
  untried: list[str]
  warm: int = 0

  @property
  def setting(self) -> Setting:
    """The best setting."""
    return self.runs.settings[0]

  @property
  def steps(self) -> int:
    """Number of updates."""
    return int(self.runs.at[-1])

  def after(self, steps: float, metric: str) -> np.ndarray:
    """``(seeds,)``: a metric after so many steps, a warm start's among them."""
    found = self.runs.metrics[metric][0]
    return np.array([np.interp(steps - self.warm, self.runs.at, run) for run in found])

  def at_the_end(self, metric: str) -> np.ndarray:
    """``(seeds,)``: a metric after as many steps as the training has."""
    return self.after(self.steps, metric)

  def after_seconds(self, seconds: float, metric: str) -> np.ndarray:
    """``(seeds,)``: a metric after so many seconds, or at the end."""
    return self.after(seconds / self.seconds, metric)


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
    runs = len(arguments.get("settings", optimizer.settings))
    runs *= len(arguments.get("seeds", (0,)))
    self.bar.total = max(self.bar.total, self.bar.n + runs * optimizer.steps_of(task))
    folder = pathlib.Path(self.options.work) / "checkpoints" / self.name
    # Not those of another search under the same label.
    told = [optimizer.settings, optimizer.steps_of(task), arguments]
    text = json.dumps(told, sort_keys=True, default=list)
    tag = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{task.name}-{label}-{tag}".replace(" ", "_")
    half = "bfloat16" if self.options.bfloat16 else ""
    folder = folder / self.options.scale / half / name
    if folder in self._folders:
      raise ValueError(f"{task.name}, {label}: two trainings would share {folder}.")
    self._folders.add(folder)
    checkpoint = Checkpoint(folder, self.options.resume)
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


def compare(
  task: Task,
  optimizers: Mapping[str, Optimizer],
  seeds: int,
  session: Session,
  search: Search,
  points: int = 10,
  known: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
  """Searches, trains and times every optimizer.

  Args:
    task: what to train.
    optimizers: by name.
    seeds: runs with the chosen setting, from seeds that the search has not seen.
    session: of the experiment.
    search: how the setting is chosen.
    points: how many times metrics are taken in a run; once in those of the search.
    known: outcomes of an earlier run, which are only timed anew.

  Returns:
    Outcomes by name.
  """
  outcomes = dict(known or {})
  for name, optimizer in optimizers.items():
    if name not in outcomes:
      train = functools.partial(session.train, task=task, optimizer=optimizer)
      warm = 0 if optimizer.prepare is None else task.warm_batches
      outcomes[name] = _trained(train, name, optimizer, seeds, search, points, warm)
  timed = {name: (o, outcomes[name].setting) for name, o in optimizers.items()}
  seconds = seconds_per_step(task, timed, length=min(100, task.steps))
  return {name: outcomes[name]._replace(seconds=seconds[name]) for name in optimizers}


def _trained(
  train: Callable[..., Runs],
  name: str,
  optimizer: Optimizer,
  seeds: int,
  search: Search,
  points: int,
  warm: int,
) -> Outcome:
  """What a search found, and runs with the best setting, not timed yet."""
  unseen = range(search.seeds, search.seeds + seeds)
  report_on = functools.partial(train, f"{name} seeds", seeds=unseen, points=points)
  if not optimizer.has_choice:
    runs = tried = report_on()
  else:
    search_seeds = range(search.seeds)
    once = functools.partial(train, seeds=search_seeds, points=1, chunks=points)
    tried = searched(once, name, optimizer, search)
    runs = report_on(settings=[search.best(tried)])
  ladders = optimizer.ladders or grid(tried.settings)
  missing = untried(runs.settings[0], tried.settings, ladders)
  return Outcome(tried, runs, math.nan, Curve.of(runs), missing, warm)


def experiment(
  options: Options,
  name: str,
  tasks: Mapping[str, Task],
  optimizers: Mapping[str, Mapping[str, Optimizer]],
  seeds: int,
  search: Search,
  points: int = 10,
  needed: Collection[str] = (),
) -> dict[str, Any]:
  """The record of a comparison on several tasks.

  Args:
    options: of the experiment; they say which tasks and optimizers take part.
    name: of the experiment.
    tasks: by name.
    optimizers: by name, for each task.
    seeds: runs with the chosen settings, unless the options say how many.
    search: how settings are chosen.
    points: how many times metrics are taken in a whole run; in one that the options
      stop, as often for its length, and once at least.
    needed: optimizers without which there is no report.

  Returns:
    What :func:`restored` reads, by task.
  """
  tasks, seeds = options.chosen_tasks(tasks), options.seeds or seeds
  taking_part = {task: options.chosen(optimizers[task], needed) for task in tasks}
  often = dict.fromkeys(tasks, points)
  if options.steps is not None:
    often = {
      n: min(points, max(1, points * options.steps // task.steps))
      for n, task in tasks.items()
    }
    tasks = {n: _stopped(task, options.steps) for n, task in tasks.items()}
    taking_part = {
      task: {n: _stopped(o, options.steps) for n, o in found.items()}
      for task, found in taking_part.items()
    }
  total = sum(
    o.steps_of(task) * (len(o.settings) * search.seeds * o.has_choice + seeds)
    for n, task in tasks.items()
    for o in taking_part[n].values()
  )
  found = {}
  with session(options, name, total) as opened:
    for key, task in tasks.items():
      known = _known(options, key, task, taking_part[key])
      found[key] = record(
        compare(task, taking_part[key], seeds, opened, search, often[key], known)
      )
  return report.plain(found)


def _known(
  options: Options, name: str, task: Task, optimizers: Mapping[str, Optimizer]
) -> dict[str, Outcome]:
  """The outcomes of a task in the record that the options name.

  Raises:
    ValueError: if it lacks the task, or has other numbers of steps or precision.
  """
  if options.known is None:
    return {}
  record = json.loads(options.known.read_text())
  if name not in record:
    raise ValueError(f"--known: {options.known} has no {name}; name others by --only")
  is_half = "--bfloat16" in record.get("facts", {}).get("command", "")
  if is_half != options.bfloat16:
    made = "with" if is_half else "without"
    raise ValueError(
      f"--known: {options.known} was made {made} --bfloat16; say so here too, or give"
      " another record"
    )
  kept = restored(record[name])
  found = {key: kept[key] for key in optimizers if key in kept}
  for key, outcome in found.items():
    steps = optimizers[key].steps_of(task)
    if outcome.steps != steps:
      raise ValueError(
        f"--known: {name}, {key} has {outcome.steps} steps in {options.known}, and"
        f" {steps} here; give a record of the same scale and --steps"
      )
  return found


def _stopped(trained: Any, steps: int) -> Any:
  """A task, or an optimizer with steps of its own, ending after so many of them."""
  if trained.steps is None:
    return trained
  return dataclasses.replace(trained, steps=min(steps, trained.steps))


def record(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
  """The outcomes as plain data."""
  return {name: _record(outcome) for name, outcome in outcomes.items()}


def _record(outcome: Outcome) -> dict[str, Any]:
  searched = {m: outcome.search.final(m).mean(-1) for m in _of_data(outcome.search)}
  failed = outcome.search.diverged().sum(-1)
  return {
    "setting": outcome.setting,
    "untried": outcome.untried,
    "warm": outcome.warm,
    "seconds a step": outcome.seconds,
    "search": [
      {**setting, **{m: v[i] for m, v in searched.items()}, "diverged": failed[i]}
      for i, setting in enumerate(outcome.search.settings)
    ],
    "steps": outcome.runs.at,
    "metrics": {
      name: values[0] if name in searched else report.rounded(values[0].mean(0), 3)
      for name, values in outcome.runs.metrics.items()
    },
    "curve": {
      "steps": outcome.curve.steps,
      "losses": report.rounded(outcome.curve.losses, 4),
    },
  }


def _of_data(runs: Runs) -> list[str]:
  """The metrics that are not ``mbf_adam``'s exponents."""
  return [name for name in runs.metrics if not name.startswith(exponents.TITLE)]


def of_tasks(record: Mapping[str, Any]) -> dict[str, dict[str, Outcome]]:
  """The outcomes of an experiment's record, by task and optimizer."""
  return {task: restored(kept) for task, kept in record.items()}


def restored(kept: Mapping[str, Any]) -> dict[str, Outcome]:
  """Inverse of :func:`record`, as far as tables and pictures need it.

  Exponents are means over seeds there, and of the search only the metrics of data are
  left.
  """
  return {name: _restored(entry) for name, entry in kept.items()}


def _restored(entry: Mapping[str, Any]) -> Outcome:
  metrics = {
    name: np.atleast_2d(report.numbers(values))[None]
    for name, values in entry["metrics"].items()
  }
  at, tried, none = np.array(entry["steps"]), entry["search"], np.zeros((0, 0, 0))
  settings = [{key: one[key] for key in entry["setting"]} for one in tried]
  names = [key for key in tried[0] if key in metrics]
  # A setting that diverged is one whose training loss does not fall.
  firsts = np.array([-np.inf if one["diverged"] else np.inf for one in tried])
  searched = {
    name: np.stack([firsts, report.numbers([one[name] for one in tried])], -1)[:, None]
    for name in names
  }
  curve = entry["curve"]
  return Outcome(
    Runs(settings, none, at[-1:], searched),
    Runs([entry["setting"]], none, at, metrics),
    entry["seconds a step"],
    Curve(np.array(curve["steps"]), report.numbers(curve["losses"])),
    entry["untried"],
    entry["warm"],
  )
