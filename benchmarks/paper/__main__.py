"""Runs one experiment of the paper and writes down what it found.

  python -m benchmarks.paper autoencoder
  python -m benchmarks.paper autoencoder --scale paper --resume
  python -m benchmarks.paper autoencoder --kept results/paper/autoencoder.json

Text, numbers and pictures go to results/paper/NAME.md, .json and .png.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import matplotlib

from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.report import plain

matplotlib.use("agg")

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")
STUDIES = ("cosine", "heatmaps", "theorem")  # which compare no trainings
SWEEPS = ("graft", "sensitivity")  # which train outside of comparisons too
SUPPORT = ("apart", "checkpoints", "comparison", "curves", "data", "experiment")
SUPPORT += ("exponents", "measure", "methods", "optimizers", "problems", "report")
SUPPORT += ("rivals", "search", "steps", "tables", "tasks", "training", "vision")


def names() -> list[str]:
  """The experiments: the package's modules that are no support of others."""
  found = pathlib.Path(__file__).parent.glob("[!_]*.py")
  return sorted(path.stem for path in found if path.stem not in SUPPORT)


class Arguments(NamedTuple):
  """What the command line says.

  Attributes:
    name: of the experiment.
    options: of the experiment.
    kept: records of earlier runs to make one report of, instead of running.
  """

  name: str
  options: Options
  kept: list[pathlib.Path] | None


def parse(arguments: list[str] | None = None) -> Arguments:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.paper",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("name", choices=names())
  add("--scale", choices=("quick", "cpu", "paper"), default="cpu")
  add("--data-dir", help="folder of tensorflow-datasets")
  add(
    "--extra-data",
    type=pathlib.Path,
    help="folder of faces_like.npz, cora.npz and tinyshakespeare.txt",
  )
  add("--work", type=pathlib.Path, default=pathlib.Path("results/paper"))
  add("--resume", action="store_true", help="continue from the checkpoints")
  add("--optimizers", nargs="+", help="who takes part, adam among them")
  add("--only", nargs="+", metavar="TASK", help="tasks that take part")
  add(
    "--published",
    action="store_true",
    help="the paper's own best settings, at its scale, in place of a search",
  )
  add(
    "--bfloat16",
    action="store_true",
    help="cnn's networks in half precision; parameters and optimizers stay in float32",
  )
  add("--seeds", type=_count, help="runs to report")
  add("--steps", type=_count, help="updates after which every training stops")
  add(
    "--known",
    type=pathlib.Path,
    metavar="JSON",
    help="an earlier run's record, whose optimizers are timed beside the others, not"
    " trained again",
  )
  add(
    "--kept",
    nargs="+",
    type=pathlib.Path,
    metavar="JSON",
    help="make text and pictures of earlier runs' records, each of other tasks",
  )
  values = vars(parser.parse_args(arguments))
  without = dict.fromkeys(("optimizers", "only"), STUDIES)
  without |= dict.fromkeys(("seeds", "steps", "known"), (*STUDIES, *SWEEPS))
  for option, refusing in without.items():
    if values[option] is not None and values["name"] in refusing:
      parser.error(f"--{option} does not go with {', '.join(refusing)}")
  if values["published"] and (values["name"], values["scale"]) != ("cnn", "paper"):
    parser.error("--published goes with cnn --scale paper alone")
  if values["bfloat16"] and values["name"] != "cnn":
    parser.error("--bfloat16 goes with cnn alone")
  name, kept = values.pop("name"), values.pop("kept")
  return Arguments(name, Options(**values), kept)


def _count(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{value} is not at least 1")
  return value


def main(arguments: list[str] | None = None) -> None:
  """Runs the experiment, writes its files and prints its text."""
  name, options, kept = parse(arguments)
  start = time.perf_counter()
  experiment = importlib.import_module(f"benchmarks.paper.{name}")
  if kept is None:
    report = experiment.run(options)
    facts = _facts(name, options, time.perf_counter() - start)
  else:
    facts, record = joined(kept)
    report = experiment.of_record(record)
  print(write(name, report, facts, options.work))


def joined(paths: Sequence[pathlib.Path]) -> tuple[dict[str, str], dict[str, Any]]:
  """The facts of records, and all of their tasks as one record.

  Raises:
    ValueError: if a task is in more than one of them.
  """
  every, record = [], {}
  for path in paths:
    kept = json.loads(path.read_text())
    every.append(kept.pop("facts"))
    twice = sorted({*record} & {*kept})
    if twice:
      raise ValueError(
        f"--kept: {path} has {', '.join(twice)}, and so has a record before it; give"
        " records of different tasks"
      )
    record |= kept
  titles = dict.fromkeys(title for facts in every for title in facts)
  return {
    title: "; ".join(dict.fromkeys(facts[title] for facts in every if title in facts))
    for title in titles
  }, record


def write(
  name: str, report: Report, facts: dict[str, str], folder: pathlib.Path
) -> str:
  """Writes a report's files; returns the text."""
  folder.mkdir(parents=True, exist_ok=True)
  # First of all: an hour's record outlives a picture that cannot be drawn.
  record = plain({"facts": facts, **report.record})
  (folder / f"{name}.json").write_text(json.dumps(record, separators=(",", ":")))
  lines = [f"# {name}", ""]
  lines += [f"* {title}: {fact}" for title, fact in facts.items()]
  lines += ["", report.text.strip(), ""]
  for picture, figure in report.figures.items():
    file = f"{name}.png" if len(report.figures) == 1 else f"{name}_{picture}.png"
    figure.savefig(folder / file, dpi=80)
    lines += [f"![{picture}]({file})", ""]
  text = "\n".join(lines)
  (folder / f"{name}.md").write_text(text)
  return text


def _facts(name: str, options: Options, seconds: float) -> dict[str, str]:
  versions = [f"{package} {metadata.version(package)}" for package in PACKAGES]
  device = jax.devices()[0]
  arguments = [name, "--scale", options.scale]
  for option in ("optimizers", "only"):
    chosen = getattr(options, option)
    arguments += [] if chosen is None else [f"--{option}", *chosen]
  for option in ("published", "bfloat16"):
    arguments += [f"--{option}"] if getattr(options, option) else []
  for option in ("seeds", "steps", "known"):
    given = getattr(options, option)
    arguments += [] if given is None else [f"--{option}", str(given)]
  written = shlex.join(arguments)
  return {
    "command": f"`python -m benchmarks.paper {written}`",
    "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    "device": f"{jax.device_count()} x {device.device_kind} ({platform.machine()})",
    "time": f"{seconds / 60:.1f} minutes",
    **_flags(),
  }


def _flags() -> dict[str, str]:
  """XLA's flags, if there are any: they decide what a step takes on a GPU."""
  flags = os.environ.get("XLA_FLAGS", "")
  return {"XLA_FLAGS": f"`{flags}`"} if flags else {}


if __name__ == "__main__":
  sys.exit(main())
