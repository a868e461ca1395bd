"""The next character of a text, by a transformer and by a recurrent network."""

import pathlib
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import mbf_optax
from benchmarks.models import Transformer
from benchmarks.swap import data
from benchmarks.swap.images import cross_entropy
from benchmarks.swap.problem import Batches, Factory, Problem

_HELD_OUT = 128  # sequences


def transformer(folder: pathlib.Path | None) -> Problem:
  """Two layers of width 64, Flax Linen."""

  def network(vocabulary: int) -> tuple[Callable, Callable]:
    model = Transformer(vocabulary, width=64, layers=2)

    def init(key: jax.Array) -> Any:
      return model.init(key, jnp.zeros((1, 32), jnp.int32))["params"]

    return init, lambda params, tokens: model.apply({"params": params}, tokens)

  rate = 1e-3, "nanoGPT's small character model"
  return _characters("character transformer", rate, (16, 32, 300), network, folder)


def gru(folder: pathlib.Path | None) -> Problem:
  """A gated recurrent unit of width 96, Haiku."""

  def network(vocabulary: int) -> tuple[Callable, Callable]:
    def unrolled(tokens: jax.Array) -> jax.Array:
      core = hk.GRU(96)
      x = hk.Embed(vocabulary, 32)(tokens)
      x, _ = hk.dynamic_unroll(
        core, x, core.initial_state(len(tokens)), time_major=False
      )
      return hk.Linear(vocabulary)(x)

    model = hk.without_apply_rng(hk.transform(unrolled))
    return lambda key: model.init(key, jnp.zeros((1, 32), jnp.int32)), model.apply

  rate = 2e-3, "Karpathy's char-rnn"
  size = 32, 32, 400
  partition = mbf_optax.haiku_partition
  return _characters("character GRU", rate, size, network, folder, partition)


def _characters(
  name: str,
  rate: tuple[float, str],
  size: tuple[int, int, int],
  network: Callable[[int], tuple[Callable, Callable]],
  folder: pathlib.Path | None,
  partition: Factory | None = None,
) -> Problem:
  """``size`` is the batch's, a sequence's and the training's length."""
  text, note = data.text(folder)
  init, apply = network(len(text.vocabulary))
  rows, length, steps = size
  starts = np.linspace(0, len(text.test) - length - 1, _HELD_OUT, dtype=int)
  test = jnp.asarray(text.test[starts[:, None] + np.arange(length + 1)])

  def loss(params: Any, tokens: jax.Array) -> jax.Array:
    return cross_entropy(apply(params, tokens[:, :-1]), tokens[:, 1:])

  return Problem(
    name,
    *rate,
    steps=steps,
    init=init,
    loss=lambda params, batch, key: loss(params, batch),
    batch=_windows(text.train, rows, length),
    held_out=lambda params: loss(params, test),
    partition=partition,
    note=note,
  )


def _windows(tokens: np.ndarray, rows: int, length: int) -> Batches:
  """Stretches of the text and the character after each, from random places."""
  tokens = jnp.asarray(tokens)

  def batch(step: jax.Array, key: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, step)
    starts = jax.random.randint(key, (rows, 1), 0, len(tokens) - length)
    return tokens[starts + jnp.arange(length + 1)[None]]

  return batch
