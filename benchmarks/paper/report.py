"""Tables in Markdown, curves with bands, and plain JSON."""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np
from matplotlib.colors import TABLEAU_COLORS

COLORS = {
  "sgd": "tab:gray",
  "adam": "tab:blue",
  "shampoo": "tab:brown",
  "kfac": "tab:green",
  "muon": "tab:purple",
  "soap": "tab:pink",
  "mbf": "tab:orange",
  "mbf_adam": "tab:red",
  "mbf_true": "tab:olive",
  "mbf averaged": "tab:olive",
  "momentum on adam": "tab:cyan",
  "shampoo on adam": "tab:brown",
  "kfac on adam": "tab:green",
  "mbf (1, 20), warm": "tab:cyan",
  "mbf (10, 100), warm": "tab:cyan",
}


def colors(names: Collection[str]) -> dict[str, str]:
  """Colours for the curves of one picture, the same in every picture where they can.

  Args:
    names: of the curves. Beyond the ten colours that tell curves apart best, lighter
      ones follow, and then colours repeat.
  """
  known = {name: COLORS[name] for name in names if name in COLORS}
  lighter = [matplotlib.colormaps["tab20"](place) for place in range(1, 20, 2)]
  rest = [color for color in TABLEAU_COLORS if color not in known.values()] + lighter
  free = itertools.cycle(rest)
  return {name: known[name] if name in known else next(free) for name in names}


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A Markdown table with aligned columns."""
  cells = [list(titles), *([str(cell) for cell in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  cells.insert(1, ["-" * width for width in widths])
  lines = (" | ".join(map(str.ljust, row, widths)) for row in cells)
  return "\n".join(f"| {line} |" for line in lines)


def spread(values: Any, form: str = "{:.2f}") -> str:
  """Mean and standard deviation (ddof = 1) over seeds, ``NaN`` if any is not finite."""
  values = np.asarray(values, np.float64)
  if not np.isfinite(values).all():
    return "NaN"
  if values.size == 1:
    return form.format(values.item())
  return f"{form.format(values.mean())} ± {form.format(values.std(ddof=1))}"


def describe(setting: Mapping[str, float]) -> str:
  """Hyperparameters in a table's cell."""
  return ", ".join(f"{value:.4g}" for value in setting.values())


def axes(
  rows: int, columns: int, width: float = 4.5, height: float = 3.2, **options: Any
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
  """A figure and its ``(rows, columns)`` axes."""
  figure = matplotlib.figure.Figure(
    figsize=(width * columns, height * rows), layout="constrained"
  )
  grid = figure.subplots(rows, columns, squeeze=False, **options)
  for ax in grid.flat:
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
  return figure, grid


def curve(
  ax: matplotlib.axes.Axes,
  x: Any,
  values: np.ndarray,
  label: str,
  color: str | None = None,
  **style: Any,
) -> None:
  """Draws the mean of ``(seeds, points)`` with a band of one standard deviation."""
  mean = values.mean(0)
  deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
  (line,) = ax.plot(x, mean, label=label, color=color, linewidth=1.4, **style)
  ax.fill_between(
    x, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.15, lw=0
  )


def numbers(values: Any) -> np.ndarray:
  """What :func:`plain` made null is no number again."""
  return np.array(values, float)


def smooth(losses: np.ndarray, window: int = 10) -> np.ndarray:
  """Running mean along the last axis, over fewer values at the start."""
  total = np.cumsum(losses, axis=-1, dtype=np.float64)
  counts = np.minimum(np.arange(1, losses.shape[-1] + 1), window)
  total[..., window:] -= total[..., :-window].copy()
  return total / counts


def rounded(values: np.ndarray, digits: int) -> np.ndarray:
  """To some significant digits: what a picture shows, in a small file."""
  return np.vectorize(lambda value: float(f"{value:.{digits}g}"))(values)


def log_scale(ax: matplotlib.axes.Axes) -> None:
  """A logarithmic ordinate whose ticks are readable numbers."""
  ax.set_yscale("log")
  low, high = ax.get_ylim()
  if high < 20 * low:
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")


def plain(tree: Any) -> Any:
  """Numbers, strings, lists and dicts that JSON takes; NaN becomes null."""
  if isinstance(tree, Mapping):
    return {str(key): plain(value) for key, value in tree.items()}
  if hasattr(tree, "_asdict"):
    return plain(tree._asdict())
  if isinstance(tree, jax.Array | np.ndarray | np.generic):
    return plain(np.asarray(tree).tolist())
  if isinstance(tree, list | tuple):
    return [plain(value) for value in tree]
  if isinstance(tree, float):
    return float(f"{tree:.6g}") if math.isfinite(tree) else None
  return tree
