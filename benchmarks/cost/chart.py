"""Draws loss against seconds on the paper's MNIST autoencoder, and keeps the numbers.

Adam, muon, mbf and mbf_adam train once each for 200 steps of 1,000 images, at settings
that are written below and were not chosen here. Losses are those of the whole training
set. Seconds are steps times the mean seconds of a step, which are timed in turn, whole
periods at a time, and without compilation.

python -m benchmarks.cost.chart --data-dir ~/tensorflow_datasets
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import matplotlib.pyplot as plt
import optax
from tqdm import tqdm

import mbf_optax
from benchmarks import baselines
from benchmarks.cost.race import autoencoder
from benchmarks.cost.report import environment
from benchmarks.paper.experiment import Options
from benchmarks.paper.measure import seconds_per_step
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.training import train

STEPS, POINTS = 200, 20
RATE = 2e-3  # Adam's; the best of benchmarks.cost.race's grid for it
CONTENDERS = {
  "Adam": Optimizer(optax.adam, [{"learning_rate": RATE}]),
  "muon": Optimizer(baselines.muon, [{"learning_rate": 0.03}]),
  "mbf": Optimizer(mbf_optax.mbf, [{"learning_rate": 1e-4, "damping": 3e-4}]),
  "mbf_adam": Optimizer(mbf_optax.mbf_adam, [{"learning_rate": RATE}]),
}
"""muon and mbf have the settings that benchmarks/paper/results/autoencoder.md found."""


def run(options: Options) -> dict:
  """Losses of every contender after every tenth step, and seconds of a step."""
  task = dataclasses.replace(autoencoder(options), steps=STEPS)
  with tqdm(total=STEPS * len(CONTENDERS), unit="step") as bar:
    training = functools.partial(train, task, points=POINTS, bar=bar)
    runs = {name: training(optimizer) for name, optimizer in CONTENDERS.items()}
  pairs = {name: (opt, opt.settings[0]) for name, opt in CONTENDERS.items()}
  seconds = seconds_per_step(task, pairs, rounds=3, length=20)
  return {
    name: {
      "setting": CONTENDERS[name].settings[0],
      "seconds_per_step": seconds[name],
      "step": [int(step) for step in found.at],
      "train_loss": [round(float(x), 3) for x in found.metrics["train loss"][0, 0]],
    }
    for name, found in runs.items()
  }


def draw(record: dict, path: pathlib.Path) -> None:
  """Loss against seconds, a curve for every contender."""
  figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
  for name, curve in record.items():
    seconds = [step * curve["seconds_per_step"] for step in curve["step"]]
    axes.plot(seconds[1:], curve["train_loss"][1:], label=name, linewidth=2)
  last = max(curve["step"][-1] * curve["seconds_per_step"] for curve in record.values())
  adam = record["Adam"]
  axes.set_xlim(0, min(last, 1.6 * adam["step"][-1] * adam["seconds_per_step"]))
  axes.set(xlabel="seconds", ylabel="training loss", yscale="log")
  axes.grid(alpha=0.3, which="both")
  axes.legend(frameon=False)
  figure.savefig(path, dpi=130)


def main() -> None:
  """Trains, or takes the numbers that are kept, and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
  parser.add_argument("--redraw", action="store_true", help="from the kept numbers")
  folder = pathlib.Path(__file__).parent / "results"
  parser.add_argument("--out", type=pathlib.Path, default=folder)
  arguments = parser.parse_args()
  kept = arguments.out / "autoencoder_race.json"
  if not arguments.redraw:
    record = environment() | {"curves": run(Options(data_dir=arguments.data_dir))}
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(record, indent=1) + "\n")
  curves = json.loads(kept.read_text())["curves"]
  draw(curves, arguments.out / "autoencoder_race.png")
  adam = curves["Adam"]
  for name, curve in curves.items():
    step = curve["seconds_per_step"] / adam["seconds_per_step"]
    print(f"{name}: step / Adam's {step:.2f}, loss {curve['train_loss'][-1]}")


if __name__ == "__main__":
  main()
