"""The image classifiers of the CNN experiments: how long each method trains them."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import models
from benchmarks.paper import data
from benchmarks.paper.experiment import Options, Scale
from benchmarks.paper.rivals import Build, with_schedule
from benchmarks.paper.tasks import Task, classification, whole_pass

_BATCH = 128
HEADS = {"resnet": "Dense_0", "vgg": "Dense_2", "vgg16": "Dense_2", "vgg11": "Dense_2"}
"""The layer of each network that makes logits."""


class Length(NamedTuple):
  """Of a training.

  Attributes:
    steps: number of updates.
    decay_every: of them the rate falls to a tenth.
  """

  steps: int
  decay_every: int


class Lengths(NamedTuple):
  """Of trainings by a kind of method.

  Attributes:
    first_order: SGD, Adam and what moves as far as Adam.
    mini_block: MBF.
    kronecker: KFAC and Shampoo.
  """

  first_order: Length
  mini_block: Length
  kronecker: Length


class _Plan(NamedTuple):
  """A network, its images, and how long it trains."""

  dataset: str
  model: nn.Module
  lengths: Lengths
  half: bool = False


def _alike(steps: int) -> Lengths:
  """One length for all methods, with the latest of the paper's decays.

  In a few hundred steps the early ones would leave nothing to learn.
  """
  return Lengths(*[Length(steps, max(1, round(0.6 * steps)))] * 3)


def _epochs(batches: int, *epochs: tuple[int, int]) -> Lengths:
  """Lengths and decays in epochs of a number of batches.

  Of what is trained on: a tenth of the paper's training data is held out.
  """
  return Lengths(*(Length(total * batches, k * batches) for total, k in epochs))


# Section 7 of the paper.
_RESNET = (200, 40), (200, 60), (100, 80)
_VGG = (200, 40), (150, 50), (100, 60)


_PLANS: dict[Scale, dict[str, _Plan]] = {
  "quick": {
    "resnet": _Plan("cifar10", models.ResNet(8, width=2), _alike(8), half=True),
    "vgg": _Plan(
      "fashion_mnist", models.VGG(((2,), (4,)), 10, 8), _alike(8), half=True
    ),
  },
  "cpu": {
    "resnet": _Plan("cifar10", models.ResNet(8, width=8), _alike(400), half=True),
    "vgg": _Plan(
      "fashion_mnist", models.VGG(((8,), (16,)), 10, 64), _alike(400), half=True
    ),
  },
  "paper": {
    "resnet": _Plan("cifar10", models.ResNet(32), _epochs(351, *_RESNET)),
    "vgg16": _Plan("cifar100", models.VGG(models.VGG16, 100), _epochs(351, *_VGG)),
    "vgg11": _Plan("svhn_cropped", models.VGG(models.VGG11, 10), _epochs(515, *_VGG)),
  },
}


def tasks(options: Options) -> dict[str, Task]:
  """The networks that take part, of the paper's three, or of small ones on a CPU."""
  taking_part = options.chosen_tasks(_PLANS[options.scale])
  return {name: task(name, options) for name in taking_part}


def task(name: str, options: Options) -> Task:
  """One of the networks, with random flips and crops of its images.

  Its number of steps is that of first-order methods.
  """
  plan = _PLANS[options.scale][name]
  steps = plan.lengths.first_order.steps
  images = data.images(plan.dataset, options, half=plan.half)
  augment = functools.partial(data.augment, pad=2 if plan.half else 4)
  dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32
  task = classification(name, plan.model, images, _BATCH, steps, augment, dtype)
  if options.scale != "paper":
    return task
  # Table 8's accuracies are of all test images; whole batches of them are taken here.
  return dataclasses.replace(whole_pass(task), evaluated=len(images.x_test))


def lengths(name: str, scale: Scale) -> Lengths:
  """How long each kind of method trains one of the networks."""
  return _PLANS[scale][name].lengths


def decaying(build: Build, every: int) -> Build:
  """``build`` with rates that fall to a tenth after every ``every`` steps."""

  def schedule(rate: jax.Array, count: jax.Array) -> jax.Array:
    return rate * jnp.float32(0.1) ** (count // every).astype(jnp.float32)

  return with_schedule(build, schedule)
