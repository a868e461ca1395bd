"""A test that hangs ends the run, and shows where, with and without workers."""

import pathlib
import subprocess
import sys

import pytest

SETTINGS = pathlib.Path(__file__).parents[1] / "pyproject.toml"
HANGS = """
import ctypes

def test_that_never_returns():
  ctypes.PyDLL(None).pause()  # keeps Python's lock, as a hang in compiled code may
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_hang_ends_the_run_with_its_trace(workers, tmp_path):
  (tmp_path / "test_hangs.py").write_text(HANGS)
  settings = ["-c", SETTINGS, "--rootdir", tmp_path, "-p", "no:cacheprovider"]
  command = [sys.executable, "-m", "pytest", *settings, "-n", workers, tmp_path]
  ended = subprocess.run(
    [*command, "-o", "faulthandler_timeout=1"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert ended.returncode != 0
  assert "Timeout" in ended.stderr
  assert "in test_that_never_returns" in ended.stderr
  assert "passed" not in ended.stdout
