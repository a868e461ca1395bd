"""The examples run, and leave behind what they promise."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mbf_optax
from tests import compilation

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
SHORT = [
  "flax_linen",
  "flax_nnx",
  "warm_start",
  "mbf_true",
  "tensorboard_metrics",
  "persistence",
]
pytestmark = pytest.mark.slow  # several interpreters that compile whole trainings
COMMANDS = {
  "train": [str(EXAMPLES / "train.py"), "--quick"],
  "short": ["-c", "".join(f"import {name}; {name}.main(3)\n" for name in SHORT)],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Folder and output of every command; they run side by side."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]),
    "XLA_FLAGS": compilation.QUICK,
  }
  folders = {name: tmp_path_factory.mktemp(name) for name in COMMANDS}
  processes = {
    name: subprocess.Popen(
      [sys.executable, *command],
      cwd=folders[name],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for name, command in COMMANDS.items()
  }
  outcomes = {}
  try:
    for name, process in processes.items():
      printed, complaints = process.communicate(timeout=280)
      assert process.returncode == 0, complaints
      outcomes[name] = folders[name], printed
  finally:
    for process in processes.values():
      process.kill()
  return outcomes


def drew(folder, name, printed):
  """Whether the picture exists and its path was printed."""
  path = folder / "results" / f"{name}.png"
  return f"figure: results/{path.name}" in printed and path.read_bytes()[1:4] == b"PNG"


def test_train_compares_four_optimizers_on_two_problems(finished):
  folder, printed = finished["train"]
  rows = re.findall(r"^\| (sgd, momentum|adam|mbf|mbf_adam) +\|", printed, re.M)
  assert rows == ["sgd, momentum", "adam", "mbf", "mbf_adam"] * 2
  assert "autoencoder on digits" in printed
  assert "held-out accuracy" in printed
  assert "nan" not in printed
  assert drew(folder, "train_digits", printed)


@pytest.mark.parametrize("name", SHORT)
def test_short_examples_draw_their_pictures(finished, name):
  folder, printed = finished["short"]
  assert drew(folder, name, printed)
  assert "nan" not in printed


def test_metrics_of_every_step_are_in_the_event_file(finished):
  folder, printed = finished["short"]
  assert "metrics: results/tensorboard" in printed
  events = EventAccumulator(str(folder / "results" / "tensorboard")).Reload()
  layers = [f"{kind}_{i}" for kind in ("Conv", "Dense") for i in (0, 1)]
  names = mbf_optax.LayerMetrics._fields
  tags = {f"params/{layer}/kernel/{name}" for layer in layers for name in names}
  assert set(events.Tags()["scalars"]) == tags | {"loss"}
  for tag in tags:
    values = [event.value for event in events.Scalars(tag)]
    assert [event.step for event in events.Scalars(tag)] == [0, 1, 2]
    name = tag.rpartition("/")[2]
    if name == "cosine":
      assert values[0] < 0  # downhill, while the momentum is the gradient
      assert all(-1 <= value <= 1 for value in values)
    elif name in ("persistence", "exponent"):
      assert values[0] == (name == "persistence")  # nothing was foretold yet
      assert all(0 <= value <= 1 for value in values)
    else:
      assert all(0 < value < np.inf for value in values)


def test_persistence_of_every_layer_is_printed(finished):
  _, printed = finished["short"]
  rows = re.findall(r"^(\w+)/kernel: persistence ([\d.]+) in the first", printed, re.M)
  assert [layer for layer, _ in rows] == ["Conv_0", "Conv_1", "Dense_0", "Dense_1"]
  assert all(0 < float(value) <= 1 for _, value in rows)


@pytest.fixture
def data():
  spec = importlib.util.spec_from_file_location("example_data", EXAMPLES / "data.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_digits_and_their_batches(data):
  digits = data.load("digits")
  assert digits.x_train.shape == (1437, 8, 8, 1)
  assert digits.x_test.shape == (360, 8, 8, 1)
  assert digits.classes == 10
  assert 0 == digits.x_train.min() < digits.x_train.max() == 1
  epochs = list(data.batches(digits, 479, steps=6, seed=1))
  images = [np.concatenate([x for x, _ in epochs[i : i + 3]]) for i in (0, 3)]
  for seen in images:  # three batches are one epoch: every image once
    np.testing.assert_array_equal(
      np.sort(seen.reshape(1437, -1), axis=0),
      np.sort(digits.x_train.reshape(1437, -1), axis=0),
    )
  assert not np.array_equal(*images)


def test_missing_data_is_named_with_a_remedy(data, tmp_path):
  with pytest.raises(SystemExit, match=r"mnist is not in .*--download"):
    data.load("mnist", str(tmp_path))


def test_data_of_another_format_counts_as_missing(data, tmp_path):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
  with pytest.raises(SystemExit, match="array_record"):
    data.load("mnist", str(tmp_path))


def test_data_set_is_read_from_the_cache(data, tmp_path, monkeypatch):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "array_record"}))
  monkeypatch.setattr(data, "CACHE", tmp_path)
  images, labels = np.full((2, 4, 4, 1), 255, np.uint8), np.array([0, 1], np.int32)
  arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
  np.savez(tmp_path / "mnist-3.0.1.npz", **arrays)
  loaded = data.load("mnist", str(tmp_path))
  assert loaded.x_train.dtype == np.float32
  assert loaded.x_test.max() == 1
