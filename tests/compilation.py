"""How the tests compile: quickly, since most of their time is compilation.

What they compile runs once or a few times on small arrays. The program before code
generation is the one that users get.
"""

import os
import subprocess
import sys

# Two test processes leave no core for threads that compile parts of a program.
_LEVEL = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
_EMITTERS = "--xla_cpu_use_fusion_emitters=false"  # a flag that jaxlib 0.12 dropped


def _is_known(flags: str) -> bool:
  """Whether XLA starts with these flags: it ends a process at one it does not know."""
  finished = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    check=False,
  )
  return finished.returncode == 0


def _quick() -> str:
  both = f"{_LEVEL} {_EMITTERS}"
  return both if _is_known(both) else _LEVEL


QUICK = os.environ.get("XLA_FLAGS") or _quick()
"""Flags of this process and of those that tests start; the environment's, if any."""

EIGHT_DEVICES = f"{QUICK} --xla_force_host_platform_device_count=8"
