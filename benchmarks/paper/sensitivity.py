"""Figures 15 and 16: the final loss over learning rate and damping."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.axes
import matplotlib.colors
import matplotlib.figure
import numpy as np

from benchmarks.paper import comparison, problems, report, rivals
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.optimizers import product
from benchmarks.paper.report import describe, numbers, plain
from benchmarks.paper.training import Runs

_TASKS: dict[Scale, tuple[str, ...]] = {
  "quick": ("mnist",),
  "cpu": ("mnist", "curves"),
  "paper": ("mnist", "faces", "curves"),
}
_WITHIN = 0.05  # of the best loss: what counts as insensitive

Axes = dict[str, list[float]]


class Surface(NamedTuple):
  """Final losses of a method's whole grid.

  Attributes:
    axes: the values of both hyperparameters.
    losses: ``(learning rates, dampings)``, final training losses of one seed.
    first: the loss before the first step.
  """

  axes: Axes
  losses: np.ndarray
  first: float

  @property
  def diverged(self) -> np.ndarray:
    """Where the loss is not below the first one."""
    return ~(self.losses < self.first)

  @property
  def best(self) -> tuple[float, dict[str, float]]:
    """The lowest loss, and where it is."""
    place = np.unravel_index(np.nanargmin(self.losses), self.losses.shape)
    setting = {
      name: values[index]
      for (name, values), index in zip(self.axes.items(), place, strict=True)
    }
    return float(self.losses[place]), setting


Surfaces = Mapping[str, Mapping[str, Surface]]


def run(options: Options) -> Report:
  """Trains the whole grid of each method."""
  tasks = {n: problems.autoencoder(n, options) for n in _TASKS[options.scale]}
  tasks = options.chosen_tasks(tasks)
  grids = options.chosen(_grids(options.scale))
  points = sum(len(g["learning_rate"]) * len(g["damping"]) for g in grids.values())
  total = sum(points * task.steps for task in tasks.values())
  with comparison.session(options, "sensitivity", total) as session:
    surfaces = {
      name: {
        method: _surface(
          grid,
          session.train(
            method,
            task,
            rivals.optimizer(method, product(**grid), widened=False),
            points=1,
          ),
        )
        for method, grid in grids.items()
      }
      for name, task in tasks.items()
    }
  return of_record(plain(surfaces))


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of surfaces that were kept."""
  surfaces = {
    name: {
      method: Surface(s["axes"], numbers(s["losses"]), s["first"])
      for method, s in methods.items()
    }
    for name, methods in record.items()
  }
  text = "\n\n".join(_section(name, found) for name, found in surfaces.items())
  return Report(text, dict(record), {"surfaces": _figure(surfaces)})


def _grids(scale: Scale) -> dict[str, Axes]:
  if scale == "quick":
    small = {"learning_rate": [1e-4, 1e-3], "damping": [1e-2, 1e-1]}
    return {"mbf": small}
  steps = (
    {"learning_rate": 1, "damping": 1}
    if scale == "cpu"
    else {"learning_rate": 0.5, "damping": 0.5}
  )
  ranges = {
    "mbf": {"learning_rate": (-5, -2), "damping": (-4, 0)},
    "kfac (1, 20), warm": {"learning_rate": (-4, -1), "damping": (-3, 1)},
    "mbf_adam": {"learning_rate": (-4, -1), "damping": (-3, 1)},
  }
  return {
    method: {
      axis: [float(f"{10.0**e:.1g}") for e in np.arange(low, high + 0.1, steps[axis])]
      for axis, (low, high) in limits.items()
    }
    for method, limits in ranges.items()
  }


def _surface(axes: Axes, runs: Runs) -> Surface:
  losses = runs.metrics["train loss"].mean(1)
  shape = len(axes["learning_rate"]), len(axes["damping"])
  return Surface(axes, losses[:, -1].reshape(shape), float(losses[:, 0].mean()))


def _section(name: str, surfaces: Mapping[str, Surface]) -> str:
  """How much of each surface is close to its best, and how much diverged."""
  rows = []
  for method, surface in surfaces.items():
    loss, setting = surface.best
    close, size = surface.losses < (1 + _WITHIN) * loss, surface.losses.size
    rows.append(
      [
        method,
        f"{loss:.2f}",
        describe(setting),
        f"{close.sum()} of {size}",
        f"{surface.diverged.sum()} of {size}",
      ]
    )
  titles = ["method", "best loss", "at", f"within {_WITHIN:.0%} of it", "diverged"]
  return f"### {name}\n\n{report.table(titles, rows)}"


def _figure(surfaces: Surfaces) -> matplotlib.figure.Figure:
  columns = len(next(iter(surfaces.values())))
  figure, axes = report.axes(len(surfaces), columns, width=3.6, height=3)
  for row, (name, methods) in zip(axes, surfaces.items(), strict=True):
    low = min(surface.best[0] for surface in methods.values())
    norm = matplotlib.colors.LogNorm(low, 2 * low, clip=True)
    for ax, (method, surface) in zip(row, methods.items(), strict=True):
      _draw(ax, surface.losses, surface.axes, norm)
      ax.set_title(f"{name}, {method}")
  return figure


def _draw(
  ax: matplotlib.axes.Axes,
  losses: np.ndarray,
  grid: Axes,
  norm: matplotlib.colors.Normalize,
) -> None:
  """A map of losses, each written into its cell."""
  ax.imshow(losses, norm=norm, cmap="viridis_r", origin="lower", aspect="auto")
  ax.grid(False)
  for i, j in np.ndindex(losses.shape):
    label = f"{losses[i, j]:.3g}" if np.isfinite(losses[i, j]) else "NaN"
    ax.text(
      j, i, label, ha="center", va="center", fontsize=7, color=_ink(norm(losses[i, j]))
    )
  for axis, name in ((ax.yaxis, "learning_rate"), (ax.xaxis, "damping")):
    axis.set_ticks(range(len(grid[name])), [f"{value:g}" for value in grid[name]])
  ax.set(ylabel="learning rate", xlabel="damping")


def _ink(level: float) -> str:
  """What can be read on the colour of a normalised loss, or on the white of NaN."""
  return "white" if level > 0.5 else "black"
