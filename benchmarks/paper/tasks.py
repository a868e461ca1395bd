"""What is trained: a network, its loss on a batch, its data and its metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Likelihood(NamedTuple):
  """A loss as the network's outputs and what they are compared with.

  Attributes:
    outputs: from variables, a batch and a key (for dropout or augmentation) to the
      network's outputs in training and the variables' new collections.
    error: from outputs and a batch to the loss.
    sampled_error: from outputs and a key to the loss at targets drawn from the
      distribution that the outputs describe.
  """

  outputs: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, Variables]]
  error: Callable[[jax.Array, Batch], jax.Array]
  sampled_error: Callable[[jax.Array, jax.Array], jax.Array]

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Variables]:
    """The loss and the variables' new collections, as :class:`Task` wants it."""
    outputs, mutable = self.outputs(variables, batch, key)
    return self.error(outputs, batch), mutable


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
    valid: the same, held out, to choose settings by.
    test: the same, held out, to report.
    batch_size: rows of a batch.
    steps: number of updates.
    evaluated: rows, at most, that metrics average over, evenly spread.
    likelihood: what MBF-True and KFAC draw their targets from; ``None`` has neither.
    warm_batches: that a warm start takes, the first ones of the training.
  """

  name: str
  init: Callable[[jax.Array], Variables]
  loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, Variables]]
  metrics: Callable[[Variables, Batch], Metrics]
  train: Batch
  valid: Batch
  test: Batch
  batch_size: int
  steps: int
  evaluated: int = EVALUATED
  likelihood: Likelihood | None = None
  warm_batches: int = 40

  def sampled_loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> jax.Array:
    """The loss at targets drawn from the network's own distribution."""
    forward_key, sample_key = jax.random.split(key)
    outputs, _ = self.likelihood.outputs(variables, batch, forward_key)
    return self.likelihood.sampled_error(outputs, sample_key)


def whole_pass(task: Task) -> Task:
  """The task with the paper's warm start, a pass over all of the training data."""
  batches = len(jax.tree.leaves(task.train)[0]) // task.batch_size
  return dataclasses.replace(task, warm_batches=batches)


def split(data: Batch, share: float = 0.1) -> tuple[Batch, Batch]:
  """All rows but the last share of them, and those."""
  size = len(jax.tree.leaves(data)[0])
  first = size - round(share * size)
  return (
    jax.tree.map(lambda x: x[:first], data),
    jax.tree.map(lambda x: x[first:], data),
  )


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

  sample = mbf_optax.sample_gaussian if squared else mbf_optax.sample_bernoulli
  likelihood = Likelihood(
    outputs=lambda variables, x, key: (model.apply(variables, x), {}),
    error=error,
    sampled_error=lambda outputs, key: error(outputs, sample(outputs, key)),
  )
  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, train.shape[1]))),
    likelihood.loss,
    lambda variables, x: {"loss": error(model.apply(variables, x), x)},
    *split(train),
    test,
    batch_size,
    steps,
    evaluated,
    likelihood,
  )


def classification(
  name: str,
  model: nn.Module,
  data: Data,
  batch_size: int,
  steps: int,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Task:
  """Images to classes by cross-entropy.

  Args:
    name: of the task.
    model: called as ``model(x, train)``.
    data: images and labels.
    batch_size: rows of a batch.
    steps: number of updates.
    augment: from a key and a batch of images to changed images, in training alone.
    dtype: of the network's passes. Parameters, their gradients, batch norm's averages
      and what is made of the logits are float32.

  Returns:
    The task; its metrics are the loss and the accuracy.
  """

  def passed(
    variables: Variables, x: jax.Array, train: bool
  ) -> tuple[jax.Array, Variables]:
    others = [collection for collection in variables if collection != "params"]
    params = jax.tree.map(lambda p: p.astype(dtype), variables["params"])
    lowered = {**variables, "params": params}
    logits, new = model.apply(lowered, x.astype(dtype), train, mutable=others)
    return logits.astype(jnp.float32), new

  def outputs(
    variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Variables]:
    x = batch[0] if augment is None else augment(key, batch[0])
    return passed(variables, x, True)

  def metrics(variables: Variables, batch: Batch) -> Metrics:
    x, y = batch
    logits, _ = passed(variables, x, False)
    accuracy = (logits.argmax(-1) == y).astype(jnp.float32).mean()
    return {"loss": _cross_entropy(logits, y), "accuracy": accuracy}

  likelihood = Likelihood(
    outputs, lambda logits, batch: _cross_entropy(logits, batch[1]), _sampled
  )
  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, *data.x_train.shape[1:])), False),
    likelihood.loss,
    metrics,
    *split((data.x_train, data.y_train)),
    (data.x_test, data.y_test),
    batch_size,
    steps,
    likelihood=likelihood,
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

  def metrics(variables: Variables, batch: Batch) -> Metrics:
    logits, targets = model.apply(variables, batch[:, :-1]), batch[:, 1:]
    accuracy = (logits.argmax(-1) == targets).astype(jnp.float32).mean()
    return {"loss": _cross_entropy(logits, targets), "accuracy": accuracy}

  likelihood = Likelihood(
    outputs=lambda variables, batch, key: (model.apply(variables, batch[:, :-1]), {}),
    error=lambda logits, batch: _cross_entropy(logits, batch[:, 1:]),
    sampled_error=_sampled,
  )
  return Task(
    name,
    lambda key: model.init(key, jnp.zeros((1, length), jnp.int32)),
    likelihood.loss,
    metrics,
    *split(windows(train)),
    windows(test),
    batch_size,
    steps,
    likelihood=likelihood,
  )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _sampled(logits: jax.Array, key: jax.Array) -> jax.Array:
  return _cross_entropy(logits, mbf_optax.sample_labels(logits, key))
