"""Prints what a training step costs beside Adam's, keeps it, and draws it.

python -m benchmarks.cost --problems autoencoder resnet32 --optimizers mbf mbf_adam
python -m benchmarks.cost --report --out benchmarks/cost/results

Costs are kept in ``cost.json``, problem by problem, and made into ``cost.md`` and
``cost.png``.
"""

import argparse
import pathlib
from collections.abc import Mapping

import matplotlib
from tqdm import tqdm

from benchmarks.cost.measure import measure
from benchmarks.cost.optimizers import OPTIMIZERS
from benchmarks.cost.problems import PROBLEMS
from benchmarks.cost.report import Costs, Record, cost_table

matplotlib.use("agg")
import matplotlib.pyplot as plt


def main() -> None:
  """Measures unless asked for the report alone, keeps, prints and draws."""
  options = _options()
  record = Record(options.out / "cost.json")
  if not options.report:
    names = dict.fromkeys(["adam", *options.optimizers])
    for problem in tqdm(options.problems, desc="problems"):
      optimizers = {name: OPTIMIZERS[name] for name in names}
      record.keep(problem, measure(PROBLEMS[problem](), optimizers, options.rounds))
  text = page(record)
  (options.out / "cost.md").write_text(text)
  _draw(record.costs(), options.out / "cost.png")
  print(text)


def page(record: Record) -> str:
  """The tables of all problems that are kept."""
  sections = [
    f"## {problem}: Adam {1e3 * costs['adam'].mean:.1f} ms a step\n\n"
    f"{cost_table(costs)}\n"
    for problem, costs in record.costs().items()
  ]
  return (
    "# What a training step costs\n\nMade by `python -m benchmarks.cost`:"
    f" {record.made_with()}. Whole training steps, all optimizers of a table in turn,"
    " the median of each kind of step, weighted by how often it occurs. Periods are"
    " (steps between statistics, steps between inverses); `mbf` has (1, 2) and"
    " `mbf_adam` (1, 10).\n\n" + "\n".join(sections)
  )


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
  parser.add_argument(
    "--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS)
  )
  parser.add_argument("--rounds", type=int, default=10, help="timings of each step")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  parser.add_argument("--report", action="store_true", help="of what is kept in --out")
  return parser.parse_args()


def _draw(results: Mapping[str, Costs], path: pathlib.Path) -> None:
  figure, axes = plt.subplots(
    1, len(results), figsize=(1 + 3 * len(results), 3.6), squeeze=False
  )
  for axis, (problem, costs) in zip(axes[0], results.items(), strict=True):
    ratios = {name: cost.mean / costs["adam"].mean for name, cost in costs.items()}
    bars = axis.barh(list(ratios), list(ratios.values()), color="#4477aa")
    axis.bar_label(bars, fmt="%.2f", padding=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(
      title=problem, xlabel="step time / adam's", xlim=(0, 1.2 * max(ratios.values()))
    )
  figure.tight_layout()
  figure.savefig(path, dpi=80)


if __name__ == "__main__":
  main()
