"""How costs are kept and written down."""

import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from benchmarks.cost.measure import Cost
from benchmarks.paper.report import table

Costs = Mapping[str, Cost]
"""Of one problem, by optimizer; Adam's among them."""


class Record:
  """Costs of several problems in a file, each with what it was measured with.

  What is measured anew replaces what was kept of the same problem, and nothing else.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

  def keep(self, problem: str, costs: Costs) -> None:
    """Enters the costs of a problem, and writes the file."""
    plain = {name: cost._asdict() for name, cost in costs.items()}
    self._kept[problem] = {"environment": environment(), "costs": plain}
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.path.write_text(json.dumps(self._kept, indent=1) + "\n")

  def costs(self) -> dict[str, dict[str, Cost]]:
    """Of every problem."""
    return {
      problem: {name: Cost(**cost) for name, cost in kept["costs"].items()}
      for problem, kept in self._kept.items()
    }

  def made_with(self) -> str:
    """The versions and devices of all that is kept."""
    made = [kept["environment"] for kept in self._kept.values()]
    lines = [f"{versions(one)}, {one['device']}" for one in made]
    return "; ".join(dict.fromkeys(lines))


def cost_table(costs: Costs) -> str:
  """A row for each optimizer, its times beside Adam's."""
  adam = costs["adam"]
  titles = ["optimizer", "step / Adam's", "dearest step / Adam's"]
  titles += ["compiling / Adam's", "state, MB", "temporary, MB"]
  return table(titles, [_row(name, cost, adam) for name, cost in costs.items()])


def _row(name: str, cost: Cost, adam: Cost) -> Sequence[str]:
  return (
    name,
    f"{cost.mean / adam.mean:.2f}",
    f"{cost.worst / adam.mean:.2f}",
    f"{cost.compile_update / adam.compile_update:.1f}",
    f"{cost.state_bytes / 1e6:.1f}",
    f"{cost.temporary_bytes / 1e6:.1f}",
  )


def environment() -> dict[str, Any]:
  """What the numbers were measured with."""
  return {
    "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "optax")},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
  }


def versions(made: Mapping[str, Any]) -> str:
  """Those of an :func:`environment`, in words."""
  packages = (f"{name} {version}" for name, version in made["versions"].items())
  flags = [f"XLA_FLAGS {made['XLA_FLAGS']}"] if made.get("XLA_FLAGS") else []
  return ", ".join([*packages, f"Python {made['python']}", *flags])
