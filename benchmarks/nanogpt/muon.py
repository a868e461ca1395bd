"""A transformer of two layers beside muon, two rates each.

2 layers of width 128, 600 steps of 16 windows of 64 characters of tiny-shakespeare,
50 of them of warm-up, cosine decay to zero, no weight decay but muon's. Muon has a
rate of its own for the matrices, and Adam at a usual rate (3e-3) for
embeddings and norms. ``mbf_adam`` runs at Adam's rate, and with the matrices at a rate
of their own as muon has it. All rates that were tried are shown.

python -m benchmarks.nanogpt.muon --data-dir FOLDER_OF_TINYSHAKESPEARE

The runs are kept in ``results/muon.json``, and ``--report`` makes the table anew.
"""

import argparse
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

import mbf_optax
from benchmarks.baselines.muon import matrices
from benchmarks.nanogpt.training import (
  Build,
  Setting,
  keep,
  kept,
  made_with,
  texts,
  train,
)

SETTING = Setting(layers=2, batch=16, steps=600)
RATE, WARMUP = 3e-3, 50
RATES = (5e-3, 1e-2)
PLAIN_RATES = (1e-2, 2e-2)  # of muon without consistent_rms
CONSISTENT = 0.2  # Liu et al., 2025: updates as long as Adam's usually are
DECAY = 0.1
RESULTS = pathlib.Path(__file__).parent / "results"


def schedule(rate: float) -> optax.Schedule:
  """Up to the rate, and down to zero."""
  return optax.warmup_cosine_decay_schedule(0, rate, WARMUP, SETTING.steps)


def muon(rate: float, consistent_rms: float | None) -> optax.GradientTransformation:
  """Muon for the matrices, Adam (with Nesterov's momentum) for the rest."""
  return optax.contrib.muon(
    schedule(rate),
    weight_decay=DECAY,
    adam_learning_rate=schedule(RATE),
    consistent_rms=consistent_rms,
    muon_weight_dimension_numbers=matrices,
  )


def apart(rate: float) -> optax.GradientTransformation:
  """``mbf_adam`` with a rate of its own for the matrices."""

  def kinds(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "matrix" if "kernel" in jax.tree_util.keystr(path) else "other",
      params,
    )

  each = {
    "matrix": mbf_optax.mbf_adam(schedule(rate)),
    "other": optax.adam(schedule(RATE)),
  }
  return optax.partition(each, kinds)


CONTENDERS: Mapping[str, Build] = (
  {
    "adam": lambda: optax.adam(schedule(RATE)),
    "mbf_adam": lambda: mbf_optax.mbf_adam(schedule(RATE)),
  }
  | {f"mbf_adam, {r:g}": functools.partial(apart, r) for r in RATES}
  | {f"muon, {r:g}": functools.partial(muon, r, None) for r in PLAIN_RATES}
  | {f"muon, consistent, {r:g}": functools.partial(muon, r, CONSISTENT) for r in RATES}
)


def table(runs: Mapping[str, list[Mapping[str, Any]]]) -> str:
  """A row for every contender, every seed shown."""
  rows = ["| optimizer | validation loss in the end | seeds |", "| --- | --- | --- |"]
  for name, seeds in runs.items():
    last = np.array([run["validation"][-1] for run in seeds])
    shown = f"{last.mean():.3f}"
    if len(last) > 1:
      shown += f" ± {last.std(ddof=1) / np.sqrt(len(last)):.3f}"
    rows.append(f"| {name} | {shown} | {', '.join(f'{v:.3f}' for v in last)} |")
  return "\n".join(rows)


def train_all(options: argparse.Namespace) -> None:
  """Trains what is not yet kept, and keeps every run."""
  halves = texts(options.data_dir)
  path = options.out / "muon.json"
  runs = kept(path)
  for seed in range(options.seeds):
    for name in options.contenders:
      seeds = runs.setdefault(name, [])
      if len(seeds) <= seed:
        seeds.append(train(CONTENDERS[name], SETTING, halves, seed))
        keep(path, runs)


def report(folder: pathlib.Path) -> str:
  """The page of the runs that are kept in a folder."""
  path = folder / "muon.json"
  found = kept(path)
  runs = {name: found[name] for name in CONTENDERS if name in found}
  return (
    "# A transformer of two layers beside muon\n\n2 layers of 128, 600 steps of 16"
    f" windows of 64 characters; {made_with(path)}, two CPU cores; made by"
    " `python -m benchmarks.nanogpt.muon --report`. A rate behind a name is that of the"
    " matrices, two for each method, so that every best one is at an edge; everything"
    " else is at 3e-3.\n\n"
    f"{table(runs)}\n"
  )


def main() -> None:
  """Trains every contender, unless asked for the report alone, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data-dir", type=pathlib.Path, help="of tinyshakespeare.txt")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  parser.add_argument("--report", action="store_true", help="from the kept runs")
  options = parser.parse_args()
  if not options.report:
    train_all(options)
  page = report(options.out)
  (options.out / "muon.md").write_text(page)
  print(page)


if __name__ == "__main__":
  main()
