"""How costs are written down."""

import platform
from importlib import metadata

import jax

from benchmarks.cost.measure import Cost


def table(title: str, costs: dict[str, Cost]) -> str:
  """A table of one problem's costs, relative to Adam's."""
  adam = costs["adam"]
  lines = [
    f"\n{title}: adam {1e3 * adam.mean:.1f} ms a step",
    "optimizer           step/adam  worst/adam  compile/adam  state MB  temporary MB",
  ]
  for name, cost in costs.items():
    lines.append(
      f"{name:18s}  {cost.mean / adam.mean:9.2f}  {cost.worst / adam.mean:10.2f}"
      f"  {cost.compile_update / adam.compile_update:12.1f}"
      f"  {cost.state_bytes / 1e6:8.1f}  {cost.temporary_bytes / 1e6:12.1f}"
    )
  return "\n".join(lines)


def environment() -> dict:
  """What the numbers were measured with."""
  return {
    "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "optax")},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
  }
