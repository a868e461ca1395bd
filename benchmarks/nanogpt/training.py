"""Trainings of nanoGPT's network on tiny-shakespeare."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.cost.report import environment, versions
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
  return versions(json.loads(path.read_text()))


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


def texts(folder: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
  """The characters of tiny-shakespeare as numbers, nine tenths to train on."""
  if folder is None or not (folder / "tinyshakespeare.txt").exists():
    raise SystemExit(
      "Give --data-dir a folder that holds tinyshakespeare.txt."
      " benchmarks/paper/DATA.md says where it is from."
    )
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


class Training:
  """A network, its optimizer and its batches, compiled.

  Attributes:
    stream: ``(steps, batch, CONTEXT + 1)`` characters, a batch a step.
  """

  def __init__(
    self,
    build: Build,
    setting: Setting,
    halves: tuple[np.ndarray, np.ndarray],
    seed: int,
  ):
    train_text, test_text = halves
    model, tx = GPT(int(train_text.max()) + 1, setting.layers), build()

    def objective(params: Any, tokens: jax.Array) -> jax.Array:
      logits = model.apply({"params": params}, tokens[:, :-1])
      return loss(logits, tokens[:, 1:])

    def step(carry: tuple[Any, Any], tokens: jax.Array) -> tuple[Any, jax.Array]:
      params, state = carry
      value, gradient = jax.value_and_grad(objective)(params, tokens)
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), value

    held_out = batches(test_text, setting.batch, VALIDATION, 0)
    self._validate = jax.jit(
      lambda params: jnp.mean(
        jax.lax.map(lambda tokens: objective(params, tokens), held_out)
      )
    )
    self.stream = batches(train_text, setting.batch, setting.steps, seed + 1)
    params = model.init(jax.random.key(seed), self.stream[0, :, :-1])["params"]
    self._carry = params, tx.init(params)
    compiled = jax.jit(step, donate_argnums=0)
    self._step = compiled.lower(self._carry, self.stream[0]).compile()

  def train(self, tokens: jax.Array) -> tuple[float, float]:
    """Steps on some batches: their mean loss, and the seconds."""
    begun, total = time.perf_counter(), jnp.zeros(())
    for batch in tokens:
      self._carry, value = self._step(self._carry, batch)
      total += value
    total.block_until_ready()
    return float(total) / len(tokens), time.perf_counter() - begun

  def validation(self) -> float:
    """The loss on held-out text."""
    return float(self._validate(self._carry[0]))


def train(
  build: Build, setting: Setting, halves: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, list[float]]:
  """Validation loss after every hundredth step, and the seconds until then."""
  training = Training(build, setting, halves, seed)
  record: dict[str, list[float]] = {"validation": [], "train": [], "seconds": []}
  seconds = 0.0
  for start in tqdm(range(0, setting.steps, EVERY), leave=False):
    mean, passed = training.train(training.stream[start : start + EVERY])
    seconds += passed
    record["seconds"].append(round(seconds, 2))
    record["train"].append(round(mean, 4))
    record["validation"].append(round(training.validation(), 4))
  return record


def seconds_a_step(
  builds: Mapping[str, Build],
  setting: Setting,
  halves: tuple[np.ndarray, np.ndarray],
  rounds: int = 5,
) -> dict[str, float]:
  """Medians over chunks of ``EVERY`` steps that the optimizers train in turn."""
  trainings = {n: Training(build, setting, halves, 0) for n, build in builds.items()}
  seconds: dict[str, list[float]] = {name: [] for name in builds}
  for _ in tqdm(range(1 + rounds), desc="timing"):
    for name, training in trainings.items():
      seconds[name].append(training.train(training.stream[:EVERY])[1] / EVERY)
  # The first one warms up, and has mbf_adam's early refreshes.
  return {name: float(np.median(found[1:])) for name, found in seconds.items()}
