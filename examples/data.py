"""Images and labels: scikit-learn's digits, or a set of tensorflow-datasets."""

import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
CACHE = pathlib.Path("results/data")


class Data(NamedTuple):
  """Images ``(n, height, width, channels)`` in ``[0, 1]`` with their integer labels."""

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray

  @property
  def classes(self) -> int:
    """Number of classes."""
    return int(self.y_train.max()) + 1


def load(
  name: str = "digits", data_dir: str | None = None, download: bool = False
) -> Data:
  """Loads a data set by name.

  Args:
    name: one of ``NAMES``.
    data_dir: where tensorflow-datasets keeps its data; ``None`` is its own default.
    download: whether to fetch and prepare what is missing.

  Returns:
    The data; pixels are float32.

  Raises:
    SystemExit: if the data is not there, with what to do about it.
  """
  if name == "digits":
    return _digits()
  images = _prepared(name, data_dir, download)
  pixels = {k: (v / np.float32(255) if "x" in k else v) for k, v in images.items()}
  return Data(**pixels)


def batches(
  data: Data, batch_size: int, steps: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Mini-batches of training images and labels, shuffled anew in every epoch."""
  rng = np.random.default_rng(seed)
  size = len(data.x_train) // batch_size * batch_size
  order = np.empty(0, int)
  for _ in range(steps):
    if not len(order):
      order = rng.permutation(len(data.x_train))[:size]
    index, order = np.split(order, [batch_size])
    yield data.x_train[index], data.y_train[index]


def _digits(held_out: int = 360) -> Data:
  """1,797 digits of 8 x 8 pixels, which need no network; every fifth is held out."""
  import sklearn.datasets

  x, y = sklearn.datasets.load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(x))
  x = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
  y = y[order].astype(np.int32)
  return Data(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def _prepared(name: str, data_dir: str | None, download: bool) -> dict[str, np.ndarray]:
  """Arrays of a prepared data set, from the cache after the first read."""
  if data_dir is None:
    data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  folder = pathlib.Path(data_dir).expanduser()
  version = _version(folder / name)
  if version is None and not download:
    raise SystemExit(
      f"{name} is not in {folder}, or was not prepared as array_record. Pass --data-dir"
      " with the folder that holds it, or --download to fetch and prepare it there."
    )
  if version is None and importlib.util.find_spec("tensorflow") is None:
    raise SystemExit(
      f"To prepare {name}, tensorflow-datasets needs TensorFlow (reading it later does"
      " not): pip install tensorflow importlib_resources"
    )
  cached = CACHE / f"{name}-{version}.npz"
  if cached.exists():
    return dict(np.load(cached))
  arrays = _read(name, folder, download)
  cached = CACHE / f"{name}-{_version(folder / name)}.npz"
  cached.parent.mkdir(parents=True, exist_ok=True)
  np.savez(cached, **arrays)
  print(f"cached {name} in {cached}")
  return arrays


def _version(folder: pathlib.Path) -> str | None:
  """The newest version in ``folder`` that can be read without TensorFlow."""
  found = [
    info.parent.name
    for info in folder.glob("*/dataset_info.json")
    if json.loads(info.read_text()).get("fileFormat") == "array_record"
  ]
  return max(found, default=None)


def _read(name: str, folder: pathlib.Path, download: bool) -> dict[str, np.ndarray]:
  import tensorflow_datasets as tfds

  arrays: dict[str, Any] = {}
  for split in ("train", "test"):
    print(f"reading the {split} split of {name}; this takes a while, once")
    source = tfds.data_source(name, split=split, data_dir=folder, download=download)
    records = source.__getitems__(range(len(source)))
    arrays[f"x_{split}"] = np.stack([record["image"] for record in records])
    arrays[f"y_{split}"] = np.array([record["label"] for record in records], np.int32)
  return arrays
