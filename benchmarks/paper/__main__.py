"""Runs one experiment of the paper and writes down what it found.

  python -m benchmarks.paper autoencoder
  python -m benchmarks.paper autoencoder --scale paper --resume

Text, numbers and pictures go to results/paper/NAME.md, .json and .png.
"""

import argparse
import importlib
import json
import pathlib
import platform
import shlex
import sys
import time
from importlib import metadata

import jax
import matplotlib

from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.report import plain

matplotlib.use("agg")

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")
SUPPORT = ("apart", "checkpoints", "comparison", "curves", "data", "experiment")
SUPPORT += ("measure", "methods", "optimizers", "problems", "report", "steps", "tasks")
SUPPORT += ("training", "vision")


def names() -> list[str]:
  """The experiments: the package's modules that are no support of others."""
  found = pathlib.Path(__file__).parent.glob("[!_]*.py")
  return sorted(path.stem for path in found if path.stem not in SUPPORT)


def parse(arguments: list[str] | None = None) -> tuple[str, Options]:
  """The experiment's name and its options, from the command line."""
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
  values = vars(parser.parse_args(arguments))
  return values.pop("name"), Options(**values)


def main(arguments: list[str] | None = None) -> None:
  """Runs the experiment, writes its files and prints its text."""
  name, options = parse(arguments)
  start = time.perf_counter()
  experiment = importlib.import_module(f"benchmarks.paper.{name}")
  report = experiment.run(options)
  facts = _facts(name, options, time.perf_counter() - start)
  print(write(name, report, facts, options.work))


def write(
  name: str, report: Report, facts: dict[str, str], folder: pathlib.Path
) -> str:
  """Writes a report's files; returns the text."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = [f"# {name}", ""]
  lines += [f"* {title}: {fact}" for title, fact in facts.items()]
  lines += ["", report.text.strip(), ""]
  for picture, figure in report.figures.items():
    file = f"{name}.png" if len(report.figures) == 1 else f"{name}_{picture}.png"
    figure.savefig(folder / file, dpi=80)
    lines += [f"![{picture}]({file})", ""]
  text = "\n".join(lines)
  (folder / f"{name}.md").write_text(text)
  record = plain({"facts": facts, **report.record})
  (folder / f"{name}.json").write_text(json.dumps(record, indent=1))
  return text


def _facts(name: str, options: Options, seconds: float) -> dict[str, str]:
  versions = [f"{package} {metadata.version(package)}" for package in PACKAGES]
  device = jax.devices()[0]
  given = shlex.join([name, "--scale", options.scale])
  return {
    "command": f"`python -m benchmarks.paper {given}`",
    "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    "device": f"{jax.device_count()} x {device.device_kind} ({platform.machine()})",
    "time": f"{seconds / 60:.1f} minutes",
  }


if __name__ == "__main__":
  sys.exit(main())
