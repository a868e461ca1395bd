"""A file of JSON for every training, so that a benchmark that was killed goes on."""

import json
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax

import mbf_optax
from benchmarks.paper.report import plain

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "dm-haiku", "equinox")


def environment() -> dict[str, Any]:
  """What the numbers were measured with."""
  return {
    "versions": {name: metadata.version(name) for name in _PACKAGES}
    | {"mbf_optax": mbf_optax.__version__, "python": platform.python_version()},
    "machine": platform.machine(),
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
  }


def save(file: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes a result at once: a killed program leaves no half of a file."""
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_suffix(".new")
  new.write_text(json.dumps(plain(record), indent=1))
  new.replace(file)


def done(file: pathlib.Path, wanted: Mapping[str, Any]) -> bool:
  """Whether a result is there that was made with what is wanted now."""
  if not file.exists():
    return False
  found, wanted = json.loads(file.read_text()), plain(wanted)
  return all(found.get(key) == value for key, value in wanted.items())


def first(file: pathlib.Path) -> list[float | None]:
  """Losses of the first steps by seed."""
  return json.loads(file.read_text())["first"]


def first_steps(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Results of first steps below a folder, one for every seed."""
  for record in load(folder / "first"):
    for seed, loss in enumerate(record.pop("first")):
      yield record | {"seed": seed, "first": loss}


def load(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """All results below a folder."""
  for file in sorted(folder.glob("*/*.json")):
    yield json.loads(file.read_text())
