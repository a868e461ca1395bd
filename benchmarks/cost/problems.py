"""Training problems whose steps are timed; inputs are random, only shapes matter."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import models


class Problem(NamedTuple):
  """A network, a batch and its loss.

  Attributes:
    model: the Linen module.
    inputs: one batch of inputs.
    targets: one batch of targets.
    loss: from outputs and targets to a scalar.
    head: name of the layer that makes logits, if there is one.
  """

  model: nn.Module
  inputs: jax.Array
  targets: jax.Array
  loss: Callable[[jax.Array, jax.Array], jax.Array]
  head: str | None = None


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1).mean()


def autoencoder(batch: int = 1000, widths: tuple = models.MNIST_WIDTHS) -> Problem:
  """The paper's MNIST autoencoder."""
  images = jax.random.uniform(jax.random.key(0), (batch, widths[-1]))
  return Problem(models.Autoencoder(widths), images, images, _sigmoid_cross_entropy)


def images(model: nn.Module, batch: int = 128, classes: int = 10) -> Problem:
  """A classifier of 32 x 32 colour images."""
  keys = jax.random.split(jax.random.key(0))
  inputs = jax.random.normal(keys[0], (batch, 32, 32, 3))
  labels = jax.random.randint(keys[1], (batch,), 0, classes)
  head = "Dense_2" if isinstance(model, models.VGG) else "Dense_0"
  return Problem(model, inputs, labels, _cross_entropy, head)


def language(model: models.Transformer, batch: int, length: int) -> Problem:
  """A model of tokens, the next one of each as its target."""
  tokens = jax.random.randint(jax.random.key(0), (batch, length), 0, model.vocabulary)
  return Problem(model, tokens, jnp.roll(tokens, -1, 1), _cross_entropy, "Dense_0")


PROBLEMS: dict[str, Callable[[], Problem]] = {
  "autoencoder": autoencoder,
  "resnet32": lambda: images(models.ResNet(32)),
  "resnet110": lambda: images(models.ResNet(110)),
  "vgg16": lambda: images(models.VGG(), classes=100),
  "transformer": lambda: language(models.Transformer(), 16, 256),
}


def training_step(problem: Problem, tx: optax.GradientTransformation) -> Callable:
  """``(params, mutable, state) -> (params, mutable, state)``, to be jitted."""

  def loss(params: Any, mutable: Any) -> tuple[jax.Array, Any]:
    outputs, mutable = problem.model.apply(
      {"params": params, **mutable}, problem.inputs, mutable=list(mutable)
    )
    return problem.loss(outputs, problem.targets), mutable

  def step(params: Any, mutable: Any, state: Any) -> tuple[Any, Any, Any]:
    gradients, mutable = jax.grad(loss, has_aux=True)(params, mutable)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), mutable, state

  return step
