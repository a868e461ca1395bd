"""What a problem of the benchmark is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mbf_optax

Batches = Callable[[jax.Array, jax.Array], Any]
Factory = Callable[..., mbf_optax.Partition]


@dataclasses.dataclass(frozen=True)
class Problem:
  """A training at the learning rate at which its kind is usually trained with Adam.

  Attributes:
    name: in tables and of files.
    rate: Adam's usual learning rate, which every optimizer gets.
    why: where that rate is from.
    steps: length of the training, a multiple of ten.
    init: parameters from a key.
    loss: of ``(params, batch, key)``, the training loss.
    batch: of ``(step, key)``, the batch of that step.
    held_out: of ``params``, the loss on data that no batch has. Never negative.
    partition: the factory of the partition that ``mbf_adam`` is given where it does not
      read the library's parameters by itself, ``None`` elsewhere.
    scanned: whether the steps run as one loop in compiled code. XLA's convolutions are
      several times slower in such a loop on a CPU than outside of it.
    note: which data stands in for a file that is not there, in plain words.
  """

  name: str
  rate: float
  why: str
  steps: int
  init: Callable[[jax.Array], Any]
  loss: Callable[[Any, Any, jax.Array], jax.Array]
  batch: Batches
  held_out: Callable[[Any], jax.Array]
  partition: Factory | None = None
  scanned: bool = True
  note: str = ""


def drawn(arrays: Any, size: int) -> Batches:
  """Batches of ``size`` rows, each drawn at random from a tree of arrays.

  Args:
    arrays: a tree of arrays of equally many rows.
    size: rows of a batch.

  Returns:
    The batch as a function of the step and the training's key.
  """
  arrays = jax.tree.map(jnp.asarray, arrays)
  rows = len(jax.tree.leaves(arrays)[0])

  def batch(step: jax.Array, key: jax.Array) -> Any:
    chosen = jax.random.randint(jax.random.fold_in(key, step), (size,), 0, rows)
    return jax.tree.map(lambda array: array[chosen], arrays)

  return batch


def squared_error(predicted: jax.Array, target: jax.Array) -> jax.Array:
  """The mean squared difference of two arrays of one shape."""
  return jnp.mean((predicted - target) ** 2)
