"""The example that trains one model by two processes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests import compilation

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_two_processes_train_one_model():
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]),
    "XLA_FLAGS": compilation.QUICK,
  }
  finished = subprocess.run(
    [sys.executable, "-c", "import multi_host; multi_host.start(steps=12)"],
    env=environment,
    capture_output=True,
    text=True,
    timeout=280,
    check=False,
  )
  assert finished.returncode == 0, finished.stderr
  # Not at the start of a line: the processes' other output may have none of its own.
  line = r"process (\d): loss ([\d.]+), holds (\d+) of (\d+) kB"
  results = sorted(re.findall(line, finished.stdout))
  assert [process for process, *_ in results] == ["0", "1"]
  (_, loss, here, everywhere), other = results
  assert other[1:] == (loss, here, everywhere)  # one model, in equal halves
  assert float(loss) < 35  # it was 44
  assert int(here) < 0.55 * int(everywhere)
