"""Steps and seconds to nanoGPT's validation loss of 1.88 on tiny-shakespeare.

nanoGPT's own README trains 4 layers of width 128 on a CPU, context 64, batch 12, for
2,000 steps with AdamW and reports 1.88. Everything here is as there: data, splits,
schedule (100 steps of warm-up, cosine decay from 1e-3 to 1e-4), decay, clipping, betas.
``mbf_adam`` has AdamW's settings with the name swapped; both are shown at a higher rate
too. Muon has a rate of its own for the matrices, on the same schedule. All rates that
were tried are shown.

python -m benchmarks.nanogpt --data-dir FOLDER_OF_TINYSHAKESPEARE

The runs are kept in ``results/nanogpt.json``, and ``--report`` makes the table anew.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import mbf_optax
from benchmarks.baselines.muon import matrices
from benchmarks.nanogpt.model import LAYERS
from benchmarks.nanogpt.training import (
  EVERY,
  Build,
  Setting,
  keep,
  kept,
  made_with,
  texts,
  train,
)

STEPS, WARMUP = 2000, 100
SETTING = Setting(LAYERS, 12, STEPS)
RATE, LEAST, DECAY, BETAS, CLIP = 1e-3, 1e-4, 0.1, (0.9, 0.99), 1.0
GOAL = 1.88
HIGHER = 3e-3
MUON_RATES = (1e-2, 2e-2)
RESULTS = pathlib.Path(__file__).parent / "results"


def schedule(peak: float) -> optax.Schedule:
  """As nanoGPT has it, for another peak."""
  share = LEAST / RATE
  return optax.warmup_cosine_decay_schedule(0, peak, WARMUP, STEPS, share * peak)


def decayed(params: Any) -> Any:
  """As nanoGPT, which decays what has two axes or more."""
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def clipped(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """After clipping by the global norm."""
  return optax.chain(optax.clip_by_global_norm(CLIP), tx)


def like_adamw(optimizer: Callable, rate: float = RATE) -> optax.GradientTransformation:
  """As nanoGPT calls AdamW, for anything that has its arguments."""
  b1, b2 = BETAS
  return clipped(
    optimizer(schedule(rate), b1=b1, b2=b2, weight_decay=DECAY, mask=decayed)
  )


def muon(rate: float) -> optax.GradientTransformation:
  """Adam's own rate for what is no matrix."""
  return clipped(
    optax.contrib.muon(
      schedule(rate),
      weight_decay=DECAY,
      adam_learning_rate=schedule(RATE),
      adam_b1=BETAS[0],
      adam_b2=BETAS[1],
      muon_weight_dimension_numbers=matrices,
    )
  )


CONTENDERS: Mapping[str, Build] = {
  "adamw": functools.partial(like_adamw, optax.adamw),
  "mbf_adam": functools.partial(like_adamw, mbf_optax.mbf_adam),
  f"adamw, {HIGHER:g}": functools.partial(like_adamw, optax.adamw, HIGHER),
  f"mbf_adam, {HIGHER:g}": functools.partial(like_adamw, mbf_optax.mbf_adam, HIGHER),
} | {f"muon, {rate:g}": functools.partial(muon, rate) for rate in MUON_RATES}


def reached(record: Mapping[str, list[float]], goal: float) -> tuple[int, float] | None:
  """The first measured step with that validation loss, and its seconds."""
  for index, value in enumerate(record["validation"]):
    if value <= goal:
      return (index + 1) * EVERY, record["seconds"][index]
  return None


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
  """A row for every contender."""
  rows = [
    "| optimizer | validation loss in the end | steps to 1.88 | seconds to 1.88 |"
    " seconds of all steps |",
    "| --- | --- | --- | --- | --- |",
  ]
  for name, record in runs.items():
    found = reached(record, GOAL)
    steps, seconds = found if found else ("not reached",) * 2
    last, whole = record["validation"][-1], record["seconds"][-1]
    if not record.get("alone", True):
      seconds = whole = "-"
    rows.append(f"| {name} | {last:.3f} | {steps} | {seconds} | {whole} |")
  return "\n".join(rows)


def train_all(options: argparse.Namespace) -> None:
  """Trains the contenders one after the other, and keeps each one's run."""
  halves = texts(options.data_dir)
  setting = SETTING._replace(steps=options.steps)
  path = options.out / "nanogpt.json"
  runs = kept(path)
  for name in options.contenders:
    run = train(CONTENDERS[name], setting, halves, options.seed)
    runs[name] = run | {"alone": not options.beside}
    keep(path, runs)


def report(folder: pathlib.Path) -> str:
  """The page of the runs that are kept in a folder."""
  path = folder / "nanogpt.json"
  found = kept(path)
  runs = {name: found[name] for name in CONTENDERS if name in found}
  return (
    "# nanoGPT's CPU setting\n\n4 layers of 128, context 64, batch 12, 2,000 steps on"
    f" tiny-shakespeare, one seed; {made_with(path)}, two CPU cores;"
    " made by `python -m benchmarks.nanogpt --report`. Seconds are without compilation"
    " and validation; - where other work ran beside the training.\n\n"
    f"{table(runs)}\n"
  )


def main() -> None:
  """Trains every contender, unless asked for the report alone, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data-dir", type=pathlib.Path, help="of tinyshakespeare.txt")
  parser.add_argument("--steps", type=int, default=STEPS)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  parser.add_argument(
    "--beside", action="store_true", help="other work runs: seconds are not reported"
  )
  parser.add_argument("--report", action="store_true", help="from the kept runs")
  options = parser.parse_args()
  if not options.report:
    train_all(options)
  page = report(options.out)
  (options.out / "nanogpt.md").write_text(page)
  print(page)


if __name__ == "__main__":
  main()
