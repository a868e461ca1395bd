"""On a mesh of eight devices: the same trajectory, every statistic in its place."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._mesh import layout
from tests import compilation

ROOT = pathlib.Path(__file__).parents[2]
OPTIMIZERS = ["mbf", "mbf_adam"]
LAYOUTS = ["data", "fsdp", "tensor"]
MODES = ["explicit", "automatic"]

# Along which axis each statistic is divided, however its parameter is; None for what
# has no axis that divides evenly.
BLOCK_AXIS = {
  "mbf": {
    "conv/kernel/statistics": 2,
    "conv/bias/second_moment": 1,
    "cut/kernel/statistics": 0,
    "down/kernel/statistics": 1,
    "full/kernel/statistics": 1,
    "large/kernel/statistics": 0,
    "other/kernel/history": 0,
    "other/kernel/gram": 1,
    "other/kernel/inverse": 1,
    "other/kernel/damping": 0,
    "up/kernel/statistics": 1,
  },
  "mbf_adam": {
    "conv/kernel/inputs/statistics": 1,
    "conv/kernel/outputs/statistics": 1,
    "cut/kernel/statistics": 0,
    "down/kernel/inputs/statistics": 1,
    "down/kernel/outputs/statistics": 1,
    "full/kernel/statistics": 1,
    "large/kernel/statistics": 0,
    "other/kernel/inputs/statistics": None,
    "other/kernel/outputs/statistics": 1,
    "up/kernel/inputs/statistics": 1,
    "up/kernel/outputs/statistics": 1,
  },
}
# Moments lie as their parameters do.
ELEMENTWISE = {
  "data": {"embed/embedding": [None] * 2, "norm/scale": [None]},
  "fsdp": {"embed/embedding": ["x", None], "norm/scale": ["x"]},
  "tensor": {"embed/embedding": [None, "y"], "norm/scale": [None]},
}
MESH_AXIS = {"data": None, "fsdp": "x", "tensor": "y"}
# What keeps a matrix: packed triangles, one of each block, shared by a layer.
MATRICES = {
  "mbf": [[45, 8, 16], [45, 16], [16, 72, 72], [16, 3, 65], [6, 16], [264, 264]],
  "mbf_adam": [[1, 72, 72], [45, 16], [16, 72, 72], [512, 512], [264, 264]],
}


# Compiling for eight devices takes long.
CASES = [
  pytest.param((o, p, m), marks=pytest.mark.slow)
  for o in OPTIMIZERS
  for p in LAYOUTS
  for m in MODES
]


@pytest.fixture(scope="module")
def cases(request):
  """What ``cases.py`` found, by optimizer, layout and mode of sharding."""
  ours = [item for item in request.session.items if item.path == request.path]
  specs = [item.callspec for item in ours if hasattr(item, "callspec")]
  chosen = {spec.params["case"] for spec in specs}
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": compilation.EIGHT_DEVICES,
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "tests._mesh.cases", name]
      + [f"{layout}:{mode}" for o, layout, mode in sorted(chosen) if o == name],
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


@pytest.fixture(params=CASES)
def case(request, cases):
  optimizer, name, _ = request.param
  return optimizer, name, cases[request.param]


def test_trajectory_is_that_of_one_device(case):
  *_, found = case
  assert found["error"] < 1e-5


def test_state_is_divided_like_its_parameters(case):
  optimizer, name, found = case
  for when in ("first", "jitted", "last"):
    if when not in found:
      continue
    placed, axis = found[when], MESH_AXIS[name]
    for path, entry in BLOCK_AXIS[optimizer].items():
      spec = placed[f"1/{path}"]
      assert spec == [axis if i == entry else None for i in range(len(spec))], path
      if path.endswith("statistics"):
        assert placed[f"1/{path}".replace("statistics", "inverse")] == spec, path
    for path, spec in ELEMENTWISE[name].items():
      moments = [given for name, given in placed.items() if name.endswith(path)]
      assert moments == [spec] * len(moments)
      assert len(moments) == (2 if optimizer == "mbf_adam" else 1)
      if optimizer == "mbf":
        assert placed[f"1/{path}/second_moment"] == [None, *spec]


def holds(shape, matrix):
  """Whether an array of ``shape`` may hold the whole ``matrix``."""
  shape = list(shape)
  for size in matrix:
    if size not in shape:
      return False
    shape.remove(size)
  return True


@pytest.mark.parametrize("when", ["always", "conditional"])
def test_neither_a_step_nor_a_refresh_gathers_a_matrix(case, when):
  optimizer, name, found = case
  # Momenta move, and panels of wide matrices, so gathers are seen.
  assert found[when] or name == "data"
  for shape in found[when]:
    assert not any(holds(shape, matrix) for matrix in MATRICES[optimizer]), shape


def test_no_device_holds_a_wide_matrix_whole(case):
  optimizer, name, found = case
  widest = MATRICES[optimizer][-1]
  whole = [shape for shape in found["arrays"] if holds(shape, widest)]
  assert bool(whole) == (name == "data")  # where it belongs to a whole parameter


def test_without_a_mesh_a_state_is_built_where_it_is():
  built = layout.init(lambda params: params, lambda *_: None, {"a": jnp.ones(2)})
  np.testing.assert_array_equal(built["a"], 1)
  assert layout.update(lambda updates, state: (state, updates), 1, 2) == (2, 1)
