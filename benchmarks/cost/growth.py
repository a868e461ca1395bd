"""Prints and draws how the cost of a step grows with one size of the problem.

python -m benchmarks.cost.growth --axes depth width --rounds 5
python -m benchmarks.cost.growth --report --out benchmarks/cost/results

Costs are kept in ``growth.json``, size by size, and made into ``growth.md`` and
``growth.png``.
"""

import argparse
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
from tqdm import tqdm

from benchmarks import models
from benchmarks.cost import problems
from benchmarks.cost.measure import measure
from benchmarks.cost.optimizers import OPTIMIZERS, Factory, low_rank
from benchmarks.cost.problems import Problem
from benchmarks.cost.report import Costs, Record
from benchmarks.paper.report import table

matplotlib.use("agg")
import matplotlib.pyplot as plt


class Axis(NamedTuple):
  """A size that is varied, and what is timed at each of its values.

  Attributes:
    what: the problem, in words.
    values: the sizes.
    problem: from a size to the problem.
    optimizers: from a size to the optimizers beside Adam.
  """

  what: str
  values: Sequence[int]
  problem: Callable[[int], Problem]
  optimizers: Callable[[int], dict[str, Factory]]


def _usual(*names: str) -> Callable[[int], dict[str, Factory]]:
  return lambda _: {name: OPTIMIZERS[name] for name in names}


AXES = {
  "depth": Axis(
    "ResNets by their depth, batch 16",
    (8, 20, 32, 56, 110),
    lambda depth: problems.images(models.ResNet(depth), batch=16),
    _usual("mbf", "mbf_adam"),
  ),
  "width": Axis(
    "Two dense layers by their width, batch 512",
    (256, 512, 1024, 2048, 4096, 8192),
    lambda width: problems.autoencoder(512, (width, width)),
    _usual("mbf(10,100)", "mbf_adam"),
  ),
  "kernel": Axis(
    "Four convolutions by the size of their kernels, batch 16",
    (1, 3, 5, 7, 9, 11),
    lambda size: problems.images(models.PlainConvnet(32, size), batch=16),
    _usual("mbf", "mbf_adam"),
  ),
  "batch": Axis(
    "The MNIST autoencoder by its batch",
    (16, 64, 256, 1024),
    problems.autoencoder,
    _usual("mbf", "mbf(10,100)", "mbf_adam"),
  ),
  "rank": Axis(
    "The MNIST autoencoder by the rank of low_rank, batch 1000",
    (4, 8, 16, 32, 64),
    lambda _: problems.autoencoder(),
    lambda rank: {"low_rank": lambda: low_rank(rank)},
  ),
}

Results = Mapping[str, Mapping[int, Costs]]


def main() -> None:
  """Measures unless asked for the report alone, keeps, prints and draws."""
  options = _options()
  record = Record(options.out / "growth.json")
  if not options.report:
    sizes = [(name, size) for name in options.axes for size in AXES[name].values]
    for name, size in tqdm([s for s in sizes if s[1] <= options.largest], unit="size"):
      axis = AXES[name]
      optimizers = {"adam": OPTIMIZERS["adam"], **axis.optimizers(size)}
      costs = measure(axis.problem(size), optimizers, options.rounds)
      record.keep(f"{name} {size}", costs)
  text = page(record)
  (options.out / "growth.md").write_text(text)
  _draw(by_axis(record), options.out / "growth.png")
  print(text)


def by_axis(record: Record) -> Results:
  """What is kept, by axis and size."""
  found: dict[str, dict[int, Costs]] = {}
  for name, costs in record.costs().items():
    axis, size = name.split()
    found.setdefault(axis, {})[int(size)] = costs
  return {axis: dict(sorted(sizes.items())) for axis, sizes in found.items()}


def page(record: Record) -> str:
  """A table for each axis that is kept."""
  sections = []
  for axis, sizes in by_axis(record).items():
    names = [name for name in next(iter(sizes.values())) if name != "adam"]
    titles = [axis, "Adam, ms a step", *(f"{name} / Adam" for name in names)]
    rows = []
    for size, costs in sizes.items():
      adam = costs["adam"].mean
      ratios = [f"{costs[name].mean / adam:.2f}" for name in names]
      rows.append([size, f"{1e3 * adam:.1f}", *ratios])
    sections.append(f"## {AXES[axis].what}\n\n{table(titles, rows)}\n")
  return (
    "# How the cost of a step grows\n\nMade by `python -m benchmarks.cost.growth`:"
    f" {record.made_with()}. Whole training steps beside Adam's, in turn, the median of"
    " each kind of step, weighted by how often it occurs.\n\n" + "\n".join(sections)
  )


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
  parser.add_argument("--rounds", type=int, default=5, help="timings of each step")
  parser.add_argument(
    "--largest", type=int, default=8192, help="leave larger sizes of every axis out"
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  parser.add_argument("--report", action="store_true", help="of what is kept in --out")
  return parser.parse_args()


def _draw(results: Results, path: pathlib.Path) -> None:
  figure, axes = plt.subplots(
    1, len(results), figsize=(1 + 3 * len(results), 3.4), squeeze=False
  )
  for axis, (varied, sizes) in zip(axes[0], results.items(), strict=True):
    names = next(iter(sizes.values()))
    for name in names:
      ratios = [costs[name].mean / costs["adam"].mean for costs in sizes.values()]
      axis.plot(list(sizes), ratios, marker="o", label=name)
    axis.set(xlabel=varied, xscale="log", ylabel="step time / adam's")
    axis.set_xticks(list(sizes), list(map(str, sizes)))
    axis.minorticks_off()
    axis.legend(frameon=False)
  figure.tight_layout()
  figure.savefig(path, dpi=80)


if __name__ == "__main__":
  main()
