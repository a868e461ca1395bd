"""The experiments' data: image sets, CURVES, FACES, a text and a citation graph.

At ``--scale quick`` every set is replaced by a stand-in of the same shape that needs no
files, so that an experiment can be tried anywhere.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.curves import curves
from benchmarks.paper.experiment import Options
from examples.data import Data, load

SHAPES = {
  "mnist": (28, 28, 1),
  "fashion_mnist": (28, 28, 1),
  "cifar10": (32, 32, 3),
  "cifar100": (32, 32, 3),
  "svhn_cropped": (32, 32, 3),
}
_QUICK_TRAIN, _QUICK_TEST = 427, 128  # a tenth of the first to choose settings by


class Text(NamedTuple):
  """Characters as integers, the last tenth held out, and what they stand for."""

  train: np.ndarray
  test: np.ndarray
  vocabulary: str


class Graph(NamedTuple):
  """A citation graph: word counts and classes of papers, and who cites whom.

  Attributes:
    features: ``(nodes, words)`` float32.
    labels: ``(nodes,)`` int32.
    edges: ``(edges, 2)`` int32, undirected, each once.
    train: indices of the training nodes.
    validation: indices of the validation nodes.
    test: indices of the test nodes.
  """

  features: np.ndarray
  labels: np.ndarray
  edges: np.ndarray
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def images(name: str, options: Options, half: bool = False) -> Data:
  """An image set with pixels in ``[0, 1]``.

  Args:
    name: a key of ``SHAPES``.
    options: where the data is; ``quick`` takes enlarged digits of scikit-learn instead.
    half: whether to halve the resolution.

  Returns:
    Images ``(n, height, width, channels)`` and labels, on the host.

  Raises:
    SystemExit: if the data is missing, with what to do about it.
  """
  if options.scale == "quick":
    data = _enlarged_digits(SHAPES[name])
  else:
    data = load(name, options.data_dir)
  return halved(data) if half else data


def halved(data: Data) -> Data:
  """The images at half their resolution, an odd last row and column left out."""

  def halve(x: np.ndarray) -> np.ndarray:
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))

  return data._replace(x_train=halve(data.x_train), x_test=halve(data.x_test))


def curves_set(options: Options, half: bool = False) -> Data:
  """CURVES, reconstructed: 20,000 training images and 2,000 held out, no labels."""
  train, test = 20_000, 2_000
  if options.scale == "quick":
    train, test = _QUICK_TRAIN, _QUICK_TEST
  x = curves(train + test, seed=0)[..., None]
  labels = np.zeros(len(x), np.int32)
  data = Data(x[:train], labels[:train], x[train:], labels[train:])
  return halved(data) if half else data


def faces(options: Options, half: bool = False) -> Data:
  """FACES, reconstructed: 25 x 25 patches of the Olivetti faces, by person.

  Pixels have zero mean and, on average, unit variance.
  """
  if options.scale == "quick":
    data = _enlarged_digits((25, 25, 1))
    mean, scale = data.x_train.mean(), 1 / data.x_train.std()
  else:
    arrays = np.load(_extra(options, "faces_like.npz"))
    mean, scale = arrays["mean"][..., None], arrays["scale"]
    names = ("x_train", "y_train", "x_test", "y_test")
    data = Data(*(arrays[name].astype(np.float32) for name in names))
    data = data._replace(
      x_train=data.x_train.reshape(-1, 25, 25, 1),
      x_test=data.x_test.reshape(-1, 25, 25, 1),
      y_train=data.y_train.astype(np.int32),
      y_test=data.y_test.astype(np.int32),
    )
  data = data._replace(
    x_train=(data.x_train - mean) * scale, x_test=(data.x_test - mean) * scale
  )
  return halved(data) if half else data


def text(options: Options) -> Text:
  """tiny-shakespeare; ``quick`` repeats one line of it."""
  if options.scale == "quick":
    content = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 200
  else:
    content = _extra(options, "tinyshakespeare.txt").read_text()
  vocabulary = "".join(sorted(set(content)))
  codes = {character: code for code, character in enumerate(vocabulary)}
  tokens = np.array([codes[character] for character in content], np.int32)
  train = len(tokens) * 9 // 10
  return Text(tokens[:train], tokens[train:], vocabulary)


def cora(options: Options) -> Graph:
  """The Cora citation graph with its usual split; ``quick`` draws a small graph."""
  if options.scale == "quick":
    return _random_graph()
  arrays = np.load(_extra(options, "cora.npz"))
  nodes, words = arrays["x_shape"]
  features = np.zeros((nodes, words), np.float32)
  rows = np.repeat(np.arange(nodes), np.diff(arrays["x_indptr"]))
  features[rows, arrays["x_indices"]] = arrays["x_data"]
  split = [arrays[key] for key in ("train", "val", "test")]
  edges = arrays["edges"].astype(np.int32).reshape(-1, 2)
  return Graph(features, arrays["y"].astype(np.int32), edges, *split)


def augment(key: jax.Array, batch: jax.Array, pad: int = 4) -> jax.Array:
  """A batch of images with random flips and crops out of a zero-padded frame."""
  flip_key, shift_key = jax.random.split(key)
  flips = jax.random.bernoulli(flip_key, shape=(len(batch), 1, 1, 1))
  batch = jnp.where(flips, batch[:, :, ::-1], batch)
  padded = jnp.pad(batch, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  shifts = jax.random.randint(shift_key, (len(batch), 2), 0, 2 * pad + 1)

  def crop(image: jax.Array, shift: jax.Array) -> jax.Array:
    start = (shift[0], shift[1], jnp.zeros_like(shift[0]))
    return jax.lax.dynamic_slice(image, start, batch.shape[1:])

  return jax.vmap(crop)(padded, shifts)


def _extra(options: Options, name: str) -> pathlib.Path:
  folder = options.extra_data or pathlib.Path("data")
  path = folder.expanduser() / name
  if not path.exists():
    raise SystemExit(
      f"{name} is not in {folder}. Pass --extra-data with the folder that holds it"
      " (benchmarks/paper/DATA.md says where it is from), or --scale quick for a"
      " stand-in that needs no files."
    )
  return path


def _enlarged_digits(shape: tuple[int, int, int]) -> Data:
  """scikit-learn's digits in a larger frame."""
  digits = load("digits")
  height, _, channels = shape
  factor = height // 8
  before = (height - 8 * factor) // 2
  after = height - 8 * factor - before

  def enlarge(x: np.ndarray) -> np.ndarray:
    x = x.repeat(factor, 1).repeat(factor, 2).repeat(channels, 3)
    return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))

  return Data(
    enlarge(digits.x_train[:_QUICK_TRAIN]),
    digits.y_train[:_QUICK_TRAIN],
    enlarge(digits.x_test[:_QUICK_TEST]),
    digits.y_test[:_QUICK_TEST],
  )


def _random_graph(nodes: int = 120, words: int = 50, classes: int = 7) -> Graph:
  rng = np.random.default_rng(0)
  labels = rng.integers(classes, size=nodes).astype(np.int32)
  features = (rng.random((nodes, words)) < 0.1).astype(np.float32)
  features[np.arange(nodes), labels] = 1
  edges = rng.integers(nodes, size=(3 * nodes, 2)).astype(np.int32)
  edges = edges[edges[:, 0] != edges[:, 1]]
  return Graph(features, labels, edges, *np.split(np.arange(nodes), [40, 70]))
