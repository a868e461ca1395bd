"""The training problems that several experiments share, at every scale."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax

from benchmarks import models
from benchmarks.paper import data
from benchmarks.paper.experiment import Options, Scale
from benchmarks.paper.tasks import (
  Task,
  classification,
  language,
  reconstruction,
  whole_pass,
)

SEEDS: dict[Scale, int] = {"quick": 2, "cpu": 3, "paper": 5}
# Of a search among diverging runs: one seed may pick what diverges from others.
SEARCH_SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 2, "paper": 1}


class _Size(NamedTuple):
  """How large an autoencoder's training is."""

  half: bool
  widths: tuple[int, ...]
  batch_size: int
  steps: int
  evaluated: int


_AUTOENCODERS: dict[Scale, dict[str, _Size]] = {
  "quick": {
    "mnist": _Size(True, (6, 196), 64, 8, 128),
    "faces": _Size(True, (6, 144), 64, 8, 128),
    "curves": _Size(True, (6, 196), 64, 8, 128),
  },
  "cpu": {
    "mnist": _Size(True, (250, 125, 64, 16, 64, 125, 250, 196), 1000, 300, 3000),
    "faces": _Size(True, (200, 100, 50, 16, 50, 100, 200, 144), 1000, 300, 3000),
    "curves": _Size(True, (100, 50, 25, 12, 6, 12, 25, 50, 100, 196), 1000, 300, 3000),
  },
  "paper": {
    "mnist": _Size(False, models.MNIST_WIDTHS, 1000, 6000, 60_000),
    "faces": _Size(False, models.FACES_WIDTHS, 1000, 6000, 60_000),
    "curves": _Size(False, models.CURVES_WIDTHS, 1000, 6000, 60_000),
  },
}


def autoencoder(
  name: str, options: Options, hidden: tuple[int, ...] | None = None
) -> Task:
  """An autoencoder of the paper.

  Args:
    name: ``"mnist"``, ``"faces"`` or ``"curves"``.
    options: of the experiment; the scale says how large the network is.
    hidden: widths of the hidden layers instead.

  Returns:
    The task, with the loss of Table 6: squared error for FACES, binary cross-entropy
    for the others.
  """
  size = _AUTOENCODERS[options.scale][name]
  if hidden is not None:
    size = size._replace(widths=(*hidden, size.widths[-1]))
  load = {
    "mnist": lambda: data.images("mnist", options, size.half),
    "faces": lambda: data.faces(options, size.half),
    "curves": lambda: data.curves_set(options, size.half),
  }[name]
  task = reconstruction(
    name,
    load(),
    size.widths,
    size.batch_size,
    size.steps,
    squared=name == "faces",
    evaluated=size.evaluated,
  )
  return whole_pass(task) if options.scale == "paper" else task


class Convnet(nn.Module):
  """Two convolutions with pooling and one hidden dense layer (appendix 11.4.5)."""

  channels: tuple[int, int] = (32, 64)
  kernel: int = 5
  hidden: int = 1024
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Logits of images ``(n, height, width, channels)``."""
    del train
    for channels in self.channels:
      x = nn.relu(nn.Conv(channels, (self.kernel, self.kernel))(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
    return nn.Dense(self.classes)(x)


def convnet(options: Options) -> Task:
  """The paper's simple CNN on Fashion-MNIST; smaller, at half resolution, on a CPU."""
  full = options.scale == "paper"
  model = Convnet() if full else Convnet((8, 16), 3, 64)
  steps = {"quick": 8, "cpu": 300, "paper": 4210}[options.scale]
  images = data.images("fashion_mnist", options, half=not full)
  return classification("convnet", model, images, 128, steps)


def transformer(options: Options) -> Task:
  """A causal character transformer on tiny-shakespeare."""
  text = data.text(options)
  vocabulary = len(text.vocabulary)
  width, layers, length, batch_size, steps, evaluated = {
    "quick": (8, 1, 16, 8, 8, 100),
    "cpu": (48, 2, 48, 16, 300, 1000),
    "paper": (256, 4, 256, 64, 5000, 5000),
  }[options.scale]
  model = models.Transformer(vocabulary, width, layers, heads=4)
  task = language(
    "transformer", model, text.train, text.test, batch_size, steps, length
  )
  return dataclasses.replace(task, evaluated=evaluated)
