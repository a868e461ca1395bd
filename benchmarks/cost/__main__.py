"""Prints what a training step costs, relative to Adam's, and draws it.

python -m benchmarks.cost --problems autoencoder resnet32 --optimizers mbf mbf_adam
"""

import argparse
import json
import pathlib
import platform
from importlib import metadata

import jax
import matplotlib
from tqdm import tqdm

from benchmarks.cost.measure import Cost, measure
from benchmarks.cost.optimizers import OPTIMIZERS
from benchmarks.cost.problems import PROBLEMS

matplotlib.use("agg")
import matplotlib.pyplot as plt

Results = dict[str, dict[str, Cost]]


def main() -> None:
  """Measures, prints, writes JSON and draws."""
  options = _options()
  names = ["adam", *(name for name in options.optimizers if name != "adam")]
  results: Results = {}
  for problem in tqdm(options.problems, desc="problems"):
    results[problem] = measure(PROBLEMS[problem](), names, options.rounds)
    tqdm.write(_table(problem, results[problem]))
  options.out.mkdir(parents=True, exist_ok=True)
  (options.out / "cost.json").write_text(json.dumps(_report(results), indent=2))
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


def _table(problem: str, costs: dict[str, Cost]) -> str:
  adam = costs["adam"]
  lines = [
    f"\n{problem}: adam {1e3 * adam.mean:.1f} ms a step",
    "optimizer     step/adam  worst/adam  compile/adam  state MB  temporary MB",
  ]
  for name, cost in costs.items():
    lines.append(
      f"{name:12s}  {cost.mean / adam.mean:9.2f}  {cost.worst / adam.mean:10.2f}"
      f"  {cost.compile_update / adam.compile_update:12.1f}"
      f"  {cost.state_bytes / 1e6:8.1f}  {cost.temporary_bytes / 1e6:12.1f}"
    )
  return "\n".join(lines)


def _report(results: Results) -> dict:
  return {
    "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "optax")},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "costs": {
      p: {n: c._asdict() for n, c in costs.items()} for p, costs in results.items()
    },
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
