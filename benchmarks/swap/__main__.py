"""Swaps Adam for mbf_adam and others, at Adam's usual learning rate, nothing tuned.

Without a command whole trainings of all problems; ``first`` is their first 20 steps
alone, from more seeds; ``ppo`` is reinforcement learning; ``report`` makes the tables
and the picture anew.

python -m benchmarks.swap
python -m benchmarks.swap --problems vae convnet --optimizers adam mbf_adam --seeds 1
python -m benchmarks.swap --variant 'slow={"curvature_ema": 0.99}'
python -m benchmarks.swap ppo --task cartpole --optimizers adam mbf_adam --seeds 96
python -m benchmarks.swap first --optimizers adam mbf_adam --seeds 30
python -m benchmarks.swap report
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib
from tqdm import tqdm

from benchmarks.swap import ppo, report, runs
from benchmarks.swap.optimizers import OPTIMIZERS, Optimizer, variant
from benchmarks.swap.problem import Problem
from benchmarks.swap.problems import HELD_OUT, PROBLEMS, TUNING

_SETS = {"tuning": TUNING, "held_out": HELD_OUT}


def main(arguments: Sequence[str] | None = None) -> None:
  """Trains what is missing, and writes the tables and the picture anew."""
  matplotlib.use("agg")
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  named = arguments and arguments[0] in _COMMANDS
  command = _COMMANDS[arguments.pop(0) if named else "problems"]
  command(arguments)


def _problems(arguments: Sequence[str]) -> None:
  options = _problem_parser(seeds=3).parse_args(arguments)
  for problem in _chosen(options):
    runs.train(problem, _optimizers(options), *_rest(options))
  _report(["--out", str(options.out)])


def _first(arguments: Sequence[str]) -> None:
  options = _problem_parser(seeds=30).parse_args(arguments)
  for problem in _chosen(options):
    runs.begin(problem, _optimizers(options), *_rest(options))
  _report(["--out", str(options.out)])


def _ppo(arguments: Sequence[str]) -> None:
  parser = _parser(seeds=24)
  parser.add_argument("--task", choices=ppo.TASKS, default="cartpole")
  options = parser.parse_args(arguments)
  for chosen in tqdm(_optimizers(options).items(), desc=options.task):
    runs.reinforce((options.task, ppo.TASKS[options.task]), chosen, *_rest(options))
  _report(["--out", str(options.out)])


def _report(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="python -m benchmarks.swap report")
  _add_folder(parser)
  folder = parser.parse_args(arguments).out
  print(report.write(folder))
  print(
    f"The tables are in {folder}/swap.md, a picture of whole trainings beside them."
  )


def _problem_parser(seeds: int) -> argparse.ArgumentParser:
  parser = _parser(seeds)
  parser.add_argument(
    "--problems",
    nargs="+",
    choices=[*PROBLEMS, *_SETS],
    default=list(PROBLEMS),
    metavar="NAME",
    help=f"tuning, held_out, or of {', '.join(PROBLEMS)}",
  )
  parser.add_argument(
    "--data-dir",
    type=pathlib.Path,
    help="folder of tinyshakespeare.txt and cora.npz; without it others stand in",
  )
  return parser


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
  named = [_SETS.get(name, (name,)) for name in options.problems]
  for name in tqdm(dict.fromkeys(sum(named, ())), desc="problems"):
    problem = PROBLEMS[name](options.data_dir)
    if problem.note:
      tqdm.write(f"{name}: {problem.note}")
    yield name, problem


def _parser(seeds: int) -> argparse.ArgumentParser:
  """The options that the problems and reinforcement learning share."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.swap",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--optimizers",
    nargs="*",
    choices=OPTIMIZERS,
    default=list(OPTIMIZERS),
    metavar="NAME",
    help=f"of {', '.join(OPTIMIZERS)}; none, to run variants alone",
  )
  parser.add_argument(
    "--variant",
    action="append",
    type=variant,
    default=[],
    metavar="NAME=JSON",
    help="mbf_adam with other arguments, beside the optimizers; may be repeated",
  )
  parser.add_argument("--seeds", type=int, default=seeds, help="%(default)s by default")
  parser.add_argument(
    "--resume",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep the results that are there",
  )
  _add_folder(parser)
  return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/swap"))


def _optimizers(options: argparse.Namespace) -> Mapping[str, Optimizer]:
  chosen = {name: OPTIMIZERS[name] for name in options.optimizers}
  return chosen | dict(options.variant)


def _rest(options: argparse.Namespace) -> tuple[Sequence[int], pathlib.Path, bool]:
  return range(options.seeds), options.out, options.resume


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
  "problems": _problems,
  "ppo": _ppo,
  "first": _first,
  "report": _report,
}

if __name__ == "__main__":
  main()
