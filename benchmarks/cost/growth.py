"""Prints and draws how the cost of a step grows with one size of the problem.

python -m benchmarks.cost.growth --axes depth width --rounds 5
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
from tqdm import tqdm

from benchmarks import models
from benchmarks.cost import problems
from benchmarks.cost.measure import Cost, measure
from benchmarks.cost.optimizers import OPTIMIZERS, Factory, low_rank
from benchmarks.cost.problems import Problem
from benchmarks.cost.report import environment, table

matplotlib.use("agg")
import matplotlib.pyplot as plt


class Axis(NamedTuple):
  """A size that is varied, and what is timed at each of its values.

  Attributes:
    values: the sizes.
    problem: from a size to the problem.
    optimizers: from a size to the optimizers beside Adam.
  """

  values: Sequence[int]
  problem: Callable[[int], Problem]
  optimizers: Callable[[int], dict[str, Factory]]


def _usual(*names: str) -> Callable[[int], dict[str, Factory]]:
  return lambda _: {name: OPTIMIZERS[name] for name in names}


AXES = {
  "depth": Axis(
    (8, 20, 32, 56, 110),
    lambda depth: problems.images(models.ResNet(depth), batch=16),
    _usual("mbf", "mbf_adam"),
  ),
  "width": Axis(
    (256, 512, 1024, 2048, 4096, 8192),
    lambda width: problems.autoencoder(512, (width, width)),
    _usual("mbf(10,100)", "mbf_adam"),
  ),
  "kernel": Axis(
    (1, 3, 5, 7, 9, 11),
    lambda size: problems.images(models.PlainConvnet(32, size), batch=16),
    _usual("mbf", "mbf_adam"),
  ),
  "batch": Axis(
    (16, 64, 256, 1024),
    problems.autoencoder,
    _usual("mbf", "mbf(10,100)", "mbf_adam"),
  ),
  "rank": Axis(
    (4, 8, 16, 32, 64),
    lambda _: problems.autoencoder(),
    lambda rank: {"low_rank": lambda: low_rank(rank)},
  ),
}

Results = dict[str, dict[int, dict[str, Cost]]]


def main() -> None:
  """Measures, prints, writes JSON and draws."""
  options = _options()
  results: Results = {}
  sizes = [(name, size) for name in options.axes for size in AXES[name].values]
  for name, size in tqdm([s for s in sizes if s[1] <= options.largest], unit="size"):
    axis = AXES[name]
    optimizers = {"adam": OPTIMIZERS["adam"], **axis.optimizers(size)}
    costs = measure(axis.problem(size), optimizers, options.rounds)
    results.setdefault(name, {})[size] = costs
    tqdm.write(table(f"{name} {size}", costs))
  options.out.mkdir(parents=True, exist_ok=True)
  (options.out / "growth.json").write_text(
    json.dumps(environment() | {"costs": _plain(results)}, indent=2)
  )
  _draw(results, options.out / "growth.png")
  print(f"wrote {options.out}/growth.json and {options.out}/growth.png")


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
  parser.add_argument("--rounds", type=int, default=5, help="timings of each step")
  parser.add_argument(
    "--largest", type=int, default=8192, help="leave larger sizes of every axis out"
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  return parser.parse_args()


def _plain(results: Results) -> dict:
  return {
    axis: {
      size: {name: cost._asdict() for name, cost in costs.items()}
      for size, costs in sizes.items()
    }
    for axis, sizes in results.items()
  }


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
  figure.savefig(path, dpi=110)


if __name__ == "__main__":
  main()
