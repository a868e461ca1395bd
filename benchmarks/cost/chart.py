"""Draws loss against seconds on the paper's MNIST autoencoder, and keeps the numbers.

Adam, muon, mbf and mbf_adam train once each for 200 steps of 1,000 images, at settings
that are written below and were not chosen here. Losses are those of the whole training
set. SOAP, K-FAC and Shampoo are timed beside them. Seconds are steps times those of
a step, which are timed in turn, whole periods at a time, and without compilation.

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
from benchmarks.paper.optimizers import with_factors
from benchmarks.paper.training import train

STEPS, POINTS = 200, 20
RATE = 2e-3  # Adam's; the best of benchmarks.cost.race's grid for it
CONTENDERS = {
  "Adam": Optimizer(optax.adam, [{"learning_rate": RATE}]),
  "muon": Optimizer(baselines.muon, [{"learning_rate": 0.03}]),
  "mbf": Optimizer(mbf_optax.mbf, [{"learning_rate": 1e-4, "damping": 3e-4}]),
  "mbf_adam": Optimizer(mbf_optax.mbf_adam, [{"learning_rate": RATE}]),
}
"""muon and mbf have settings near those that benchmarks/paper/results/autoencoder.md
found for a smaller network."""


TIMED = {
  "SOAP": Optimizer(baselines.soap, [{"learning_rate": RATE}]),
  "K-FAC": Optimizer(
    baselines.kfac, [{"learning_rate": 3e-3, "damping": 0.1}], with_factors
  ),
  "Shampoo": Optimizer(baselines.shampoo, [{"learning_rate": 3e-3, "damping": 1e-2}]),
}
"""Peers of which a step's cost is of interest, at the periods of their papers: inverses
(for SOAP eigenvectors) at every 20th (tenth) step, statistics at every one."""


def run(options: Options) -> dict:
  """Losses of every contender after every tenth step, and everyone's seconds."""
  task = dataclasses.replace(autoencoder(options), steps=STEPS)
  with tqdm(total=STEPS * len(CONTENDERS), unit="step") as bar:
    training = functools.partial(train, task, points=POINTS, bar=bar)
    runs = {name: training(optimizer) for name, optimizer in CONTENDERS.items()}
  everyone = CONTENDERS | TIMED
  pairs = {name: (opt, opt.settings[0]) for name, opt in everyone.items()}
  seconds = seconds_per_step(task, pairs, rounds=3, length=20)
  curves = {
    name: {
      "setting": CONTENDERS[name].settings[0],
      "seconds_per_step": seconds[name],
      "step": [int(step) for step in found.at],
      "train_loss": [round(float(x), 3) for x in found.metrics["train loss"][0, 0]],
    }
    for name, found in runs.items()
  }
  return {"seconds_per_step": seconds, "curves": curves}


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
    record = environment() | run(Options(data_dir=arguments.data_dir))
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(record, indent=1) + "\n")
  record = json.loads(kept.read_text())
  draw(record["curves"], arguments.out / "autoencoder_race.png")
  seconds = record["seconds_per_step"]
  for name, value in seconds.items():
    curve = record["curves"].get(name)
    loss = f", loss {curve['train_loss'][-1]}" if curve else ""
    print(f"{name}: step / Adam's {value / seconds['Adam']:.2f}{loss}")


if __name__ == "__main__":
  main()
