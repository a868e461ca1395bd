"""What is trained: a network, its loss on a batch, its data and its metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import mbf_optax
from benchmarks import models
from examples.data import Data

Variables = dict[str, Any]
"""What a network is made of: ``"params"``, and other collections if it has them."""
Batch = Any
Metrics = dict[str, jax.Array]


EVALUATED = 5_000


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A training problem; every function can be jitted and vmapped.

  Attributes:
    name: of files and table rows.
    init: from a key to variables.
    loss: from variables, a batch and a key (for dropout, augmentation or sampling) to
      the loss and the variables' new collections without ``"params"``.
    metrics: from variables and a batch to means over the batch; the network evaluates.
    train: arrays with a common leading axis, of which a batch is some rows.
    test: the same, held out.
    batch_size: rows of a batch.
    steps: number of updates.
    evaluated: rows, at most, that metrics average over, evenly spread.
    sampled_loss: the loss at targets drawn from the network's own distribution, or
      ``None``: what MBF-True takes its statistics from.
  """

  name: str
  init: Callable[[jax.Array], Variables]
  loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, Variables]]
  metrics: Callable[[Variables, Batch], Metrics]
  train: Batch
  test: Batch
  batch_size: int
  steps: int
  evaluated: int = EVALUATED
  sampled_loss: Callable[[Variables, Batch, jax.Array], jax.Array] | None = None


def reconstruction(
  name: str,
  data: Data,
  widths: tuple[int, ...],
  batch_size: int,
  steps: int,
  squared: bool = False,
  evaluated: int = EVALUATED,
) -> Task:
  """Images to themselves through an autoencoder.

  Args:
    name: of the task.
    data: images, of any shape.
    widths: of the layers up to the code and back, the number of pixels at the end.
    batch_size: rows of a batch.
    steps: number of updates.
    squared: half the squared error instead of the binary cross-entropy, summed over
      the pixels either way.
    evaluated: rows, at most, that metrics average over.

  Returns:
    The task; its metrics are the loss.
  """
  model = models.Autoencoder(widths)
  train, test = (x.reshape(len(x), -1) for x in (data.x_train, data.x_test))

  def error(outputs: jax.Array, x: jax.Array) -> jax.Array:
    if squared:
      return 0.5 * jnp.square(outputs - x).sum(-1).mean()
    return optax.sigmoid_binary_cross_entropy(outputs, x).sum(-1).mean()

  def loss(
    variables: Variables, x: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, Variables]:
    del key
    return error(model.apply(variables, x), x), {}

  def sampled_loss(variables: Variables, x: jax.Array, key: jax.Array) -> jax.Array:
    outputs = model.apply(variables, x)
    sample = mbf_optax.sample_gaussian if squared else mbf_optax.sample_bernoulli
    return error(outputs, sample(outputs, key))

  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, train.shape[1]))),
    loss,
    lambda variables, x: {"loss": error(model.apply(variables, x), x)},
    train,
    test,
    batch_size,
    steps,
    evaluated,
    sampled_loss,
  )


def classification(
  name: str,
  model: nn.Module,
  data: Data,
  batch_size: int,
  steps: int,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Task:
  """Images to classes by cross-entropy.

  Args:
    name: of the task.
    model: called as ``model(x, train)``.
    data: images and labels.
    batch_size: rows of a batch.
    steps: number of updates.
    augment: from a key and a batch of images to changed images, in training alone.

  Returns:
    The task; its metrics are the loss and the accuracy.
  """

  def loss(
    variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Variables]:
    x, y = batch
    x = x if augment is None else augment(key, x)
    others = [collection for collection in variables if collection != "params"]
    logits, mutable = model.apply(variables, x, True, mutable=others)
    return _cross_entropy(logits, y), mutable

  def sampled_loss(variables: Variables, batch: Batch, key: jax.Array) -> jax.Array:
    augment_key, label_key = jax.random.split(key)
    x = batch[0] if augment is None else augment(augment_key, batch[0])
    others = [collection for collection in variables if collection != "params"]
    logits, _ = model.apply(variables, x, True, mutable=others)
    return _cross_entropy(logits, mbf_optax.sample_labels(logits, label_key))

  def metrics(variables: Variables, batch: Batch) -> Metrics:
    x, y = batch
    logits = model.apply(variables, x, False)
    accuracy = (logits.argmax(-1) == y).astype(jnp.float32).mean()
    return {"loss": _cross_entropy(logits, y), "accuracy": accuracy}

  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, *data.x_train.shape[1:])), False),
    loss,
    metrics,
    (data.x_train, data.y_train),
    (data.x_test, data.y_test),
    batch_size,
    steps,
    sampled_loss=sampled_loss,
  )


def language(
  name: str,
  model: nn.Module,
  train: Any,
  test: Any,
  batch_size: int,
  steps: int,
  length: int,
) -> Task:
  """The next token of windows of a text by cross-entropy.

  Args:
    name: of the task.
    model: from tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``.
    train: tokens of the training text.
    test: tokens of the held-out text.
    batch_size: windows of a batch.
    steps: number of updates.
    length: tokens of a window.

  Returns:
    The task; its metrics are the loss and the accuracy, by token.
  """

  def windows(tokens: Any) -> Any:
    count = (len(tokens) - 1) // length
    index = length * jnp.arange(count)[:, None] + jnp.arange(length + 1)[None]
    return jnp.asarray(tokens)[index]

  def loss(
    variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Variables]:
    del key
    return _cross_entropy(model.apply(variables, batch[:, :-1]), batch[:, 1:]), {}

  def sampled_loss(variables: Variables, batch: Batch, key: jax.Array) -> jax.Array:
    logits = model.apply(variables, batch[:, :-1])
    return _cross_entropy(logits, mbf_optax.sample_labels(logits, key))

  def metrics(variables: Variables, batch: Batch) -> Metrics:
    logits, targets = model.apply(variables, batch[:, :-1]), batch[:, 1:]
    accuracy = (logits.argmax(-1) == targets).astype(jnp.float32).mean()
    return {"loss": _cross_entropy(logits, targets), "accuracy": accuracy}

  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, length), jnp.int32)),
    loss,
    metrics,
    windows(train),
    windows(test),
    batch_size,
    steps,
    sampled_loss=sampled_loss,
  )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
