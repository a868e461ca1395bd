"""Trainings of nanoGPT's network on tiny-shakespeare."""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.cost.report import environment
from benchmarks.nanogpt.model import CONTEXT, GPT, loss

EVERY = 100
VALIDATION = 200  # batches, nanoGPT's eval_iters

Build = Callable[[], optax.GradientTransformation]


def kept(path: pathlib.Path) -> dict[str, Any]:
  """Runs by contender that a file keeps, none if there is no file."""
  return json.loads(path.read_text())["runs"] if path.exists() else {}


def keep(path: pathlib.Path, runs: dict[str, Any]) -> None:
  """Writes runs and what they were made with."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(environment() | {"runs": runs}, indent=1) + "\n")


def made_with(path: pathlib.Path) -> str:
  """The versions of the runs that a file keeps."""
  record = json.loads(path.read_text())
  versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
  return f"{versions}, Python {record['python']}"


class Setting(NamedTuple):
  """How large a network, and how much of the text it sees.

  Attributes:
    layers: of the network.
    batch: windows of ``CONTEXT`` characters a step.
    steps: of the training.
  """

  layers: int
  batch: int
  steps: int


def texts(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """The characters of tiny-shakespeare as numbers, nine tenths to train on."""
  text = (folder / "tinyshakespeare.txt").read_text()
  vocabulary = sorted(set(text))
  tokens = np.array([vocabulary.index(character) for character in text], np.int32)
  cut = int(0.9 * len(tokens))
  return tokens[:cut], tokens[cut:]


def batches(text: np.ndarray, batch: int, count: int, seed: int) -> jax.Array:
  """``(count, batch, CONTEXT + 1)`` characters from random places."""
  rng = np.random.default_rng(seed)
  starts = rng.integers(0, len(text) - CONTEXT, (count, batch, 1))
  return jnp.asarray(text[starts + np.arange(CONTEXT + 1)])


def train(
  build: Build, setting: Setting, halves: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, list[float]]:
  """Validation loss after every hundredth step, and the seconds until then."""
  (train_text, test_text), steps = halves, setting.steps
  model, tx = GPT(int(train_text.max()) + 1, setting.layers), build()

  def objective(params: Any, tokens: jax.Array) -> jax.Array:
    logits = model.apply({"params": params}, tokens[:, :-1])
    return loss(logits, tokens[:, 1:])

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry: tuple[Any, Any], tokens: jax.Array) -> tuple[Any, jax.Array]:
    params, state = carry
    value, gradient = jax.value_and_grad(objective)(params, tokens)
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), value

  @jax.jit
  def validate(params: Any) -> jax.Array:
    return jnp.mean(jax.lax.map(lambda tokens: objective(params, tokens), held_out))

  held_out = batches(test_text, setting.batch, VALIDATION, 0)
  stream = batches(train_text, setting.batch, steps, seed + 1)
  params = model.init(jax.random.key(seed), stream[0, :, :-1])["params"]
  carry = params, tx.init(params)
  compiled = step.lower(carry, stream[0]).compile()
  record: dict[str, list[float]] = {"validation": [], "train": [], "seconds": []}
  seconds = 0.0
  for start in tqdm(range(0, steps, EVERY), leave=False):
    begun, total = time.perf_counter(), jnp.zeros(())
    for tokens in stream[start : start + EVERY]:
      carry, value = compiled(carry, tokens)
      total += value
    total.block_until_ready()
    seconds += time.perf_counter() - begun
    record["seconds"].append(round(seconds, 2))
    record["train"].append(round(float(total) / EVERY, 4))
    record["validation"].append(round(float(validate(carry[0])), 4))
  return record
