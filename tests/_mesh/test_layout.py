"""On a mesh of eight devices: the same trajectory, every statistic in its place."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OPTIMIZERS = ["mbf", "mbf_adam"]
LAYOUTS = ["data", "fsdp", "tensor"]
MODES = ["explicit", "automatic"]

# Along which axis each statistic is divided, however its parameter is.
BLOCK_AXIS = {
  "conv/kernel/statistics": 2,
  "conv/bias/second_moment": 1,
  "full/kernel/statistics": 1,
  "large/kernel/statistics": 0,
  "low_rank/kernel/history": 0,
  "low_rank/kernel/gram": 1,
  "low_rank/kernel/damping": 0,
  "up/kernel/statistics": 0,
  "down/kernel/statistics": 0,
}
ELEMENTWISE = {
  "data": {"embed": [None] * 3, "norm": [None] * 2},
  "fsdp": {"embed": [None, "x", None], "norm": [None, "x"]},
  "tensor": {"embed": [None, None, "y"], "norm": [None] * 2},
}
MESH_AXIS = {"data": None, "fsdp": "x", "tensor": "y"}
# What keeps a matrix: packed triangles, one of each block, shared by a layer.
MATRICES = [[45, 8, 16], [45, 16], [16, 72, 72], [16, 3, 65], [6, 16], [264, 264]]


@pytest.fixture(scope="module")
def cases():
  """What ``mesh_cases.py`` found, by optimizer, layout and mode of sharding."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0",
  }
  processes = [
    subprocess.Popen(
      [sys.executable, str(ROOT / "tests" / "mesh_cases.py"), name],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for name in OPTIMIZERS
  ]
  found = {}
  try:
    for process in processes:
      printed, complaints = process.communicate(timeout=550)
      assert process.returncode == 0, complaints
      found |= {tuple(c.pop("case")): c for c in map(json.loads, printed.splitlines())}
  finally:
    for process in processes:
      process.kill()
  return found


@pytest.fixture(params=[(o, p, m) for o in OPTIMIZERS for p in LAYOUTS for m in MODES])
def case(request, cases):
  return request.param[1], cases[request.param]


def test_trajectory_is_that_of_one_device(case):
  _, found = case
  assert found["error"] < 1e-5


def test_state_is_divided_like_its_parameters(case):
  layout, found = case
  for when in ("first", "jitted", "last"):
    if when not in found:
      continue
    placed, axis = found[when], MESH_AXIS[layout]
    for path, entry in BLOCK_AXIS.items():
      spec = placed[f"1/{path}"]
      assert spec == [axis if i == entry else None for i in range(len(spec))], path
      if path.endswith("statistics"):
        assert placed[f"1/{path}".replace("statistics", "inverse")] == spec, path
    assert placed["1/low_rank/kernel/inverse"] == placed["1/low_rank/kernel/gram"]
    for name, spec in ELEMENTWISE[layout].items():
      (path,) = (p for p in placed if p.startswith(f"1/{name}"))
      assert placed[path] == spec
      assert placed[path.replace("1/", "0/").rpartition("/")[0]] == spec[1:]


def holds(shape, matrix):
  """Whether an array of ``shape`` may hold the whole ``matrix``."""
  shape = list(shape)
  for size in matrix:
    if size not in shape:
      return False
    shape.remove(size)
  return True


def test_no_step_gathers_a_statistic(case):
  layout, found = case
  assert found["always"] or layout == "data"  # momenta move, so gathers are seen
  for shape in found["always"]:
    assert not any(holds(shape, matrix) for matrix in MATRICES), shape


def test_no_refresh_gathers_a_matrix(case):
  layout, found = case
  assert found["conditional"] or layout == "data"  # panels of wide matrices move
  for shape in found["conditional"]:
    assert not any(holds(shape, matrix) for matrix in MATRICES), shape


def test_no_device_holds_a_wide_matrix_whole(case):
  layout, found = case
  whole = [shape for shape in found["arrays"] if holds(shape, MATRICES[-1])]
  assert bool(whole) == (layout == "data")  # where it belongs to a whole parameter
