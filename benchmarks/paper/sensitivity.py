"""Figures 15 and 16: the final loss over learning rate and damping."""

from collections.abc import Mapping
from typing import Any

import matplotlib.axes
import matplotlib.colors
import matplotlib.figure
import numpy as np

from benchmarks.paper import comparison, problems, report
from benchmarks.paper.experiment import Options, Report, Scale
from benchmarks.paper.optimizers import OPTIMIZERS, product
from benchmarks.paper.training import Runs

_TASKS: dict[Scale, tuple[str, ...]] = {
  "quick": ("mnist",),
  "cpu": ("mnist", "curves"),
  "paper": ("mnist", "faces", "curves"),
}
_WITHIN = 0.05  # of the best loss: what counts as insensitive

Axes = dict[str, list[float]]


def run(options: Options) -> Report:
  """Trains the whole grid of each method."""
  tasks = {n: problems.autoencoder(n, options) for n in _TASKS[options.scale]}
  grids = _grids(options.scale)
  points = sum(len(g["learning_rate"]) * len(g["damping"]) for g in grids.values())
  total = sum(points * task.steps for task in tasks.values())
  with comparison.session(options, "sensitivity", total) as session:
    surfaces = {
      name: {
        method: session.train(
          method, task, OPTIMIZERS[method](product(**grid)), points=1
        )
        for method, grid in grids.items()
      }
      for name, task in tasks.items()
    }
  text = "\n\n".join(_section(n, s, grids) for n, s in surfaces.items())
  record = {name: _record(s) for name, s in surfaces.items()}
  return Report(text, record, {"surfaces": _figure(surfaces, grids)})


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
    "kfac": {"learning_rate": (-4, -1), "damping": (-3, 1)},
    "mbf_adam": {"learning_rate": (-4, -1), "damping": (-3, 1)},
  }
  return {
    method: {
      axis: [float(f"{10.0**e:.1g}") for e in np.arange(low, high + 0.1, steps[axis])]
      for axis, (low, high) in limits.items()
    }
    for method, limits in ranges.items()
  }


def _surface(runs: Runs, grid: Axes) -> np.ndarray:
  """``(learning rates, dampings)``: final training losses."""
  shape = len(grid["learning_rate"]), len(grid["damping"])
  return runs.final("train loss").mean(-1).reshape(shape)


def _section(name: str, surfaces: Mapping[str, Runs], grids: Mapping[str, Axes]) -> str:
  """How much of each surface is close to its best, and how much diverged."""
  rows = []
  for method, runs in surfaces.items():
    losses = _surface(runs, grids[method])
    best = runs.settings[runs.best()]
    close = losses < (1 + _WITHIN) * np.nanmin(losses)
    failed = ~(losses < runs.losses[..., 0].mean())
    rows.append(
      [
        method,
        f"{np.nanmin(losses):.2f}",
        report.describe(best),
        f"{close.sum()} of {losses.size}",
        f"{failed.sum()} of {losses.size}",
      ]
    )
  titles = ["method", "best loss", "at", f"within {_WITHIN:.0%} of it", "diverged"]
  return f"### {name}\n\n{report.table(titles, rows)}"


def _figure(
  surfaces: Mapping[str, Mapping[str, Runs]], grids: Mapping[str, Axes]
) -> matplotlib.figure.Figure:
  figure, axes = report.axes(len(surfaces), len(grids), width=3.6, height=3)
  for row, (name, methods) in zip(axes, surfaces.items(), strict=True):
    found = [_surface(runs, grids[method]) for method, runs in methods.items()]
    low = min(np.nanmin(losses) for losses in found)
    norm = matplotlib.colors.LogNorm(low, 2 * low, clip=True)
    for ax, method, losses in zip(row, methods, found, strict=True):
      _draw(ax, losses, grids[method], norm)
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


def _record(surfaces: Mapping[str, Runs]) -> dict[str, Any]:
  return {
    method: [
      {**setting, "train loss": loss}
      for setting, loss in zip(
        runs.settings, runs.final("train loss")[:, 0], strict=True
      )
    ]
    for method, runs in surfaces.items()
  }
