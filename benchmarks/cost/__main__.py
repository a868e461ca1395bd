"""Prints what a training step costs, relative to Adam's, and draws it.

python -m benchmarks.cost --problems autoencoder resnet32 --optimizers mbf mbf_adam
"""

import argparse
import json
import pathlib

import matplotlib
from tqdm import tqdm

from benchmarks.cost.measure import Cost, measure
from benchmarks.cost.optimizers import OPTIMIZERS
from benchmarks.cost.problems import PROBLEMS
from benchmarks.cost.report import environment, table

matplotlib.use("agg")
import matplotlib.pyplot as plt

Results = dict[str, dict[str, Cost]]


def main() -> None:
  """Measures, prints, writes JSON and draws."""
  options = _options()
  names = ["adam", *(name for name in options.optimizers if name != "adam")]
  results: Results = {}
  for problem in tqdm(options.problems, desc="problems"):
    optimizers = {name: OPTIMIZERS[name] for name in names}
    results[problem] = measure(PROBLEMS[problem](), optimizers, options.rounds)
    tqdm.write(table(problem, results[problem]))
  options.out.mkdir(parents=True, exist_ok=True)
  (options.out / "cost.json").write_text(
    json.dumps(environment() | {"costs": _plain(results)}, indent=2)
  )
  _draw(results, options.out / "cost.png")
  print(f"wrote {options.out}/cost.json and {options.out}/cost.png")


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
  parser.add_argument(
    "--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS)
  )
  parser.add_argument("--rounds", type=int, default=10, help="timings of each step")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  return parser.parse_args()


def _plain(results: Results) -> dict:
  return {
    problem: {name: cost._asdict() for name, cost in costs.items()}
    for problem, costs in results.items()
  }


def _draw(results: Results, path: pathlib.Path) -> None:
  figure, axes = plt.subplots(
    1, len(results), figsize=(1 + 3 * len(results), 3.6), squeeze=False, sharey=True
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
  figure.savefig(path, dpi=110)


if __name__ == "__main__":
  main()
