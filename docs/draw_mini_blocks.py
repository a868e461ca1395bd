"""Draws ``docs/mini_blocks.png``: what a mini-block is.

Run as ``python docs/draw_mini_blocks.py``; it needs matplotlib. The picture has a
background of its own, so that it reads on a dark page as well.
"""

import pathlib

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

PICTURE = pathlib.Path(__file__).parent / "mini_blocks.png"
PAPER, INK, FAINT = "#fbfaf6", "#22262b", "#8b9099"
KERNEL, NEURON, BIAS = "#3a6ea5", "#c0622f", "#7a9a3a"


def shade(colour: str, amount: float) -> tuple[float, ...]:
  """A colour mixed with the paper: 0 is paper, 1 the colour."""
  return tuple(
    (1 - amount) * p + amount * c
    for p, c in zip(to_rgb(PAPER), to_rgb(colour), strict=True)
  )


def cells(
  axes: Axes, values: np.ndarray, left: float, top: float, size: float, colours: list
) -> None:
  """A grid of squares, the more colour the larger the value."""
  for (i, j), value in np.ndenumerate(values):
    corner = left + j * size, top - (i + 1) * size
    face = shade(colours[j if len(values) == 1 else i], float(value))
    axes.add_patch(Rectangle(corner, size, size, fc=face, ec=PAPER, lw=1.2))


def outline(axes: Axes, left: float, top: float, width: float, height: float) -> None:
  """A frame around a grid."""
  axes.add_patch(
    Rectangle((left, top - height), width, height, fc="none", ec=INK, lw=1.4)
  )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
  """A straight arrow."""
  axes.add_patch(
    FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=INK, lw=1.6)
  )


def label(axes: Axes, x: float, y: float, text: str, **options: object) -> None:
  """Centred text."""
  settings = {"ha": "center", "va": "top", "color": INK, "fontsize": 12} | options
  axes.text(x, y, text, **settings)


def vector_and_matrix(
  axes: Axes, top: float, vector: np.ndarray, colours: list
) -> None:
  """A block vector, an arrow, and its outer product."""
  n = len(vector)
  size = 1.8 / n
  cells(axes, vector[:, None], 5.35, top, size, colours)
  outline(axes, 5.35, top, size, 1.8)
  arrow(axes, (5.95, top - 0.9), (6.95, top - 0.9))
  for i in range(n):
    for j in range(n):
      colour = colours[i] if i == j else INK
      value = float(vector[i] * vector[j])
      face = shade(colour, value if i == j else 0.75 * value)
      corner = 7.25 + j * size, top - (i + 1) * size
      axes.add_patch(Rectangle(corner, size, size, fc=face, ec=PAPER, lw=1))
  outline(axes, 7.25, top, 1.8, 1.8)


def convolution(axes: Axes, top: float) -> None:
  """One kernel of many, its nine offsets, its matrix."""
  rng = np.random.default_rng(3)
  label(axes, 0.35, top + 0.5, "convolution", ha="left", fontsize=14, weight="bold")
  for row in range(3):
    for column in range(4):
      values = rng.uniform(0.15, 0.45, (3, 3))
      cells(axes, values, 0.4 + 0.62 * column, top - 0.62 * row, 0.17, [FAINT] * 3)
  taken = rng.uniform(0.3, 1, 9)
  left, upper = 0.4 + 0.62, top - 0.62
  cells(axes, taken.reshape(3, 3), left, upper, 0.17, [KERNEL] * 3)
  outline(axes, left - 0.04, upper + 0.04, 0.59, 0.59)
  label(
    axes, 1.6, top - 1.9, "kernels: a 3 $\\times$ 3 square for every\npair of channels"
  )
  arrow(axes, (3.1, top - 0.9), (5.1, top - 0.9))
  label(axes, 4.1, top - 0.4, "one kernel\nis one block", fontsize=11)
  vector_and_matrix(axes, top, taken, [KERNEL] * 9)
  label(axes, 5.45, top - 1.9, "9 weights")
  label(axes, 8.15, top - 1.9, "its own 9 $\\times$ 9 matrix")


def neuron(axes: Axes, top: float) -> None:
  """One neuron of a layer, its inputs and bias, the layer's matrix."""
  rng = np.random.default_rng(5)
  label(axes, 0.35, top + 0.5, "dense layer", ha="left", fontsize=14, weight="bold")
  inputs = np.linspace(top - 0.1, top - 1.35, 5)
  outputs = np.linspace(top - 0.2, top - 1.5, 4)
  for y in inputs:
    for z in outputs:
      axes.plot([0.8, 2.3], [y, z], color=shade(FAINT, 0.5), lw=0.8, zorder=0)
  values = rng.uniform(0.35, 1, 6)
  for y, value in zip(inputs, values[:5], strict=True):
    axes.plot([0.8, 2.3], [y, outputs[1]], color=shade(NEURON, value), lw=2.6)
    axes.add_patch(Circle((0.8, y), 0.1, fc=PAPER, ec=INK, lw=1.2, zorder=3))
  axes.plot([0.8, 2.3], [top - 1.68, outputs[1]], color=BIAS, lw=2.6)
  label(axes, 0.8, top - 1.68, "1", va="center", fontsize=11, color=BIAS, weight="bold",
        bbox={"boxstyle": "circle,pad=0.2", "fc": PAPER, "ec": BIAS})  # fmt: skip
  for index, z in enumerate(outputs):
    face = shade(NEURON, 0.9) if index == 1 else PAPER
    axes.add_patch(Circle((2.3, z), 0.12, fc=face, ec=INK, lw=1.2, zorder=3))
  label(
    axes, 1.6, top - 1.9, "neurons, each with a weight for\nevery input, and a bias"
  )
  arrow(axes, (3.1, top - 0.9), (5.1, top - 0.9))
  label(axes, 4.1, top - 0.4, "one neuron\nis one block", fontsize=11)
  vector_and_matrix(axes, top, values, [NEURON] * 5 + [BIAS])
  label(axes, 5.45, top - 1.9, "inputs + bias")
  label(axes, 8.15, top - 1.9, "one matrix, the mean over\nall neurons of the layer")


def main() -> None:
  """Writes the picture."""
  figure, axes = pyplot.subplots(figsize=(9.6, 6.2), facecolor=PAPER)
  figure.subplots_adjust(0, 0, 1, 1)
  axes.set_xlim(0, 9.6)
  axes.set_ylim(0, 6.2)
  axes.axis("off")
  convolution(axes, 5.5)
  axes.plot([0.3, 9.3], [3.05, 3.05], color=shade(FAINT, 0.4), lw=1)
  neuron(axes, 2.42)
  figure.savefig(PICTURE, dpi=150, facecolor=PAPER, metadata={"Software": None})


if __name__ == "__main__":
  main()
