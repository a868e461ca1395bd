"""Swaps Adam for mbf_adam and others on small problems of many kinds.

python -m benchmarks.swap
python -m benchmarks.swap --problems vae convnet --optimizers adam mbf_adam --seeds 1
python -m benchmarks.swap --variant 'slow={"curvature_ema": 0.99}'
python -m benchmarks.swap report
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from benchmarks.swap import results
from benchmarks.swap.optimizers import OPTIMIZERS, Optimizer, variant
from benchmarks.swap.problem import Problem
from benchmarks.swap.problems import HELD_OUT, PROBLEMS, TUNING
from benchmarks.swap.training import trainer

_SETS = {"tuning": TUNING, "held_out": HELD_OUT}


def main(arguments: Sequence[str] | None = None) -> None:
  """Trains what is missing."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  _run(_run_options(arguments))


def train(
  problem: tuple[str, Problem],
  optimizer: tuple[str, Optimizer],
  seeds: Sequence[int],
  folder: pathlib.Path,
  resume: bool = True,
) -> int:
  """Trains a problem with an optimizer from every seed whose result is missing.

  Args:
    problem: its name and itself.
    optimizer: its name and itself.
    seeds: one training each.
    folder: of the results.
    resume: whether a result that is there already is kept.

  Returns:
    The number of trainings.
  """
  name, task = problem
  wanted = {
    "problem": name,
    "title": task.name,
    "optimizer": optimizer[0],
    "settings": optimizer[1].settings,
    "rate": task.rate,
    "steps": task.steps,
    "note": task.note,
  }
  files = {seed: results.path(folder, name, optimizer[0], seed) for seed in seeds}
  missing = [
    seed for seed, file in files.items() if not (resume and results.done(file, wanted))
  ]
  run = trainer(task, optimizer[1].build(task)) if missing else None
  for seed in missing:
    record = wanted | {"seed": seed} | run(seed)._asdict()
    results.save(files[seed], record | {"environment": results.environment()})
  return len(missing)


def _run(options: argparse.Namespace) -> None:
  optimizers = _optimizers(options)
  for name in tqdm(options.problems, desc="problems"):
    problem = PROBLEMS[name](options.data_dir)
    if problem.note:
      tqdm.write(f"{name}: {problem.note}")
    for optimizer in optimizers.items():
      train(
        (name, problem), optimizer, range(options.seeds), options.out, options.resume
      )


def _optimizers(options: argparse.Namespace) -> Mapping[str, Optimizer]:
  chosen = {name: OPTIMIZERS[name] for name in options.optimizers}
  return chosen | dict(options.variant)


def _run_options(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.swap",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--problems",
    nargs="+",
    choices=[*PROBLEMS, *_SETS],
    default=list(PROBLEMS),
    help="names, or tuning or held_out for one of the two sets",
  )
  parser.add_argument(
    "--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS)
  )
  parser.add_argument(
    "--variant",
    action="append",
    type=variant,
    default=[],
    metavar="NAME=JSON",
    help="mbf_adam with other arguments, beside the optimizers; may be repeated",
  )
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument(
    "--data-dir",
    type=pathlib.Path,
    help="folder of tinyshakespeare.txt and cora.npz; without it others stand in",
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/swap"))
  parser.add_argument(
    "--resume",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep the results that are there",
  )
  options = parser.parse_args(arguments)
  named = [_SETS.get(name, (name,)) for name in options.problems]
  options.problems = list(dict.fromkeys(name for names in named for name in names))
  return options


if __name__ == "__main__":
  main()
