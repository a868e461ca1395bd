"""What came out of the training runs, as a table and as a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.axes
import matplotlib.figure
import numpy as np
from problems import Classification, Reconstruction

Problem = Reconstruction | Classification

COLORS = ("tab:gray", "tab:blue", "tab:orange", "tab:red")
WINDOW = 10  # steps of the running mean that smooths the curves


class Run(NamedTuple):
  """One training run.

  Attributes:
    losses: mini-batch loss of every step.
    seconds: time from the start to the end of every step.
    loss: final loss on the training images.
    score: final score on the held-out images.
    state_bytes: size of the optimizer's state.
  """

  losses: list[float]
  seconds: list[float]
  loss: float
  score: float
  state_bytes: int


class Result(NamedTuple):
  """The runs of one optimizer at the setting that the search chose."""

  name: str
  setting: dict[str, float]
  runs: list[Run]


def table(problem: Problem, results: Sequence[Result]) -> str:
  """One row for every optimizer, in Markdown."""
  titles = ["optimizer", "learning rate", "damping", "training loss"]
  rows = [[*titles, problem.score_name, "seconds", "state, kB"]]
  for result in results:
    damping = result.setting.get("damping")
    rows.append(
      [
        result.name,
        f"{result.setting['learning_rate']:g}",
        "" if damping is None else f"{damping:g}",
        _spread([run.loss for run in result.runs], problem.loss_format),
        _spread([run.score for run in result.runs], problem.score_format),
        f"{np.mean([run.seconds[-1] for run in result.runs]):.2f}",
        f"{result.runs[0].state_bytes / 1000:,.0f}",
      ]
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  )


def _spread(values: Sequence[float], form: str) -> str:
  return f"{form.format(np.mean(values))} ± {form.format(np.std(values))}"


def figure(outcomes: Mapping[Problem, Sequence[Result]], path: pathlib.Path) -> None:
  """Draws loss against steps and against seconds, one row for every problem."""
  sheet = matplotlib.figure.Figure(
    figsize=(11, 3.2 * len(outcomes)), layout="constrained"
  )
  grid = sheet.subplots(len(outcomes), 2, squeeze=False, sharey="row")
  for axes, (problem, results) in zip(grid, outcomes.items(), strict=True):
    for result, color in zip(results, COLORS, strict=True):
      losses = np.array([_smooth(run.losses) for run in result.runs])
      seconds = np.mean([run.seconds for run in result.runs], axis=0)
      for ax, x in zip(axes, (1 + np.arange(len(seconds)), seconds), strict=True):
        ax.plot(x, losses.mean(0), color=color, label=_label(result))
        ax.fill_between(x, losses.min(0), losses.max(0), color=color, alpha=0.15)
    axes[0].set(yscale="log", ylabel=f"{problem.title}: training loss", xlabel="steps")
    axes[1].set(xlabel="seconds, without compilation")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for ax in axes:
      _finish(ax)
  _save(sheet, path)


def curves(losses: Mapping[str, Sequence[float]], path: str) -> None:
  """Draws one smoothed curve of loss against steps for every name."""
  sheet = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
  ax = sheet.subplots()
  for name, values in losses.items():
    ax.plot(1 + np.arange(len(values)), _smooth(values), label=name)
  ax.set(yscale="log", xlabel="steps", ylabel="training loss")
  ax.legend()
  _finish(ax)
  _save(sheet, pathlib.Path(path))


def panels(quantities: Mapping[str, Mapping[str, Sequence[float]]], path: str) -> None:
  """Draws quantities side by side against steps, a curve for every name in each.

  Losses are on a logarithmic axis, shares from zero to one.
  """
  sheet = matplotlib.figure.Figure(
    figsize=(4.2 * len(quantities), 3.4), layout="constrained"
  )
  (grid,) = sheet.subplots(1, len(quantities), squeeze=False)
  for ax, (title, series) in zip(grid, quantities.items(), strict=True):
    for name, values in series.items():
      ax.plot(1 + np.arange(len(values)), _smooth(values), label=name)
    ax.set(xlabel="steps", ylabel=title)
    ax.legend(frameon=False, fontsize=8)
    if "loss" in title:
      ax.set_yscale("log")
      _finish(ax)
    else:
      ax.set_ylim(-0.03, 1.03)
      _frame(ax)
  _save(sheet, pathlib.Path(path))


def _frame(ax: matplotlib.axes.Axes) -> None:
  ax.grid(alpha=0.3, which="both")
  ax.spines[["top", "right"]].set_visible(False)


def _finish(ax: matplotlib.axes.Axes) -> None:
  _frame(ax)
  low, high = ax.get_ylim()
  if high < 10 * low:  # too narrow for powers of ten
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")


def _save(sheet: matplotlib.figure.Figure, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  sheet.savefig(path, dpi=90)
  print(f"\nfigure: {path}")


def _smooth(losses: Sequence[float]) -> np.ndarray:
  """Running mean over the last ``WINDOW`` steps, over fewer at the start."""
  total = np.cumsum(losses)
  total[WINDOW:] -= total[:-WINDOW].copy()
  return total / np.minimum(np.arange(1, len(losses) + 1), WINDOW)


def _label(result: Result) -> str:
  return ", ".join(
    [result.name, *(f"{k.replace('_', ' ')} {v:g}" for k, v in result.setting.items())]
  )
