"""What optax asks of its own optimizers, in its own words."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests import compilation
from tests.contract import optax_suites

ROOT = pathlib.Path(__file__).parents[2]


def test_the_suites_that_optax_ships():
  missing = [name for name in optax_suites.LISTS if not optax_suites.path_of(name)]
  if missing:
    pytest.skip(f"this release of optax ships no {', '.join(missing)}")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": compilation.EIGHT_DEVICES,
  }
  finished = subprocess.run(
    [sys.executable, "-m", "tests.contract.optax_suites"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=850,
    check=False,
  )
  assert finished.returncode == 0, finished.stderr
  (count,) = re.findall(r"Ran (\d+) tests", finished.stderr)
  assert int(count) >= 30
