"""The image classifiers of the CNN experiments, and how their rates decay."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import models
from benchmarks.paper import data
from benchmarks.paper.experiment import Options, Scale
from benchmarks.paper.tasks import Task, classification

_BATCH = 128


class _Plan(NamedTuple):
  """A network, its images, and how long it trains."""

  dataset: str
  model: nn.Module
  steps: int
  half: bool = False


_PLANS: dict[Scale, dict[str, _Plan]] = {
  "quick": {
    "resnet": _Plan("cifar10", models.ResNet(8, width=2), 8, half=True),
    "vgg": _Plan("fashion_mnist", models.VGG(((2,), (4,)), 10, 8), 8, half=True),
  },
  "cpu": {
    "resnet": _Plan("cifar10", models.ResNet(8, width=8), 400, half=True),
    "vgg": _Plan("fashion_mnist", models.VGG(((8,), (16,)), 10, 64), 400, half=True),
  },
  "paper": {
    "resnet": _Plan("cifar10", models.ResNet(32), 200 * 390),
    "vgg16": _Plan("cifar100", models.VGG(models.VGG16, 100), 200 * 390),
    "vgg11": _Plan("svhn_cropped", models.VGG(models.VGG11, 10), 200 * 572),
  },
}


def tasks(options: Options) -> dict[str, Task]:
  """The experiment's networks: the paper's three, or small ones on a CPU."""
  return {name: task(name, options) for name in _PLANS[options.scale]}


def task(name: str, options: Options) -> Task:
  """One of the networks, with random flips and crops of its images."""
  plan = _PLANS[options.scale][name]
  images = data.images(plan.dataset, options, half=plan.half)
  augment = functools.partial(data.augment, pad=2 if plan.half else 4)
  return classification(name, plan.model, images, _BATCH, plan.steps, augment)


class Shares(NamedTuple):
  """Of the whole training, after each of which the rate falls to a tenth.

  Attributes:
    first_order: of SGD, Adam and what moves as far as Adam.
    mini_block: of MBF.
    kronecker: of KFAC and Shampoo.
  """

  first_order: float
  mini_block: float
  kronecker: float


# The paper: 40 of 200 epochs, 50 of 150, 60 of 100. In a few hundred steps the early
# decays would leave nothing to learn, so on a CPU all methods share the latest one.
SHARES: dict[Scale, Shares] = {
  "quick": Shares(0.6, 0.6, 0.6),
  "cpu": Shares(0.6, 0.6, 0.6),
  "paper": Shares(0.2, 1 / 3, 0.6),
}


def decaying(
  build: Callable[..., optax.GradientTransformation], steps: int, share: float
) -> Callable[..., optax.GradientTransformation]:
  """``build`` with a rate that falls to a tenth after every ``share`` of the steps."""
  every = max(1, round(share * steps))

  def schedule(learning_rate: jax.Array, count: jax.Array) -> jax.Array:
    return learning_rate * jnp.float32(0.1) ** (count // every).astype(jnp.float32)

  def with_schedule(
    learning_rate: jax.Array, **setting: jax.Array
  ) -> optax.GradientTransformation:
    return build(functools.partial(schedule, learning_rate), **setting)

  return with_schedule
