"""A language model of bytes, trained on the sources of Python's own library.

Data that every machine with Python has: a tenth of the files is held out.
"""

import functools
import pathlib
import sysconfig
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.cost.loops import Loop
from benchmarks.models import Transformer
from benchmarks.paper.report import table

RATES = (1e-3, 3e-3)
MUONS = ((0.01, 3e-3), (0.03, 3e-3))  # of the matrices, and of everything else
WARMUP = 0.1  # of the steps


class Setting(NamedTuple):
  """A model, its batches, and how long it trains.

  Attributes:
    width: of the model; twelve times its square are a layer's weights.
    layers: of the model.
    heads: of its attention.
    batch: windows of a step.
    length: bytes of a window.
    steps: of the training.
    points: how many times the held-out loss is taken.
  """

  width: int
  layers: int
  heads: int
  batch: int
  length: int
  steps: int = 600
  points: int = 12


class Training:
  """A training whose step is compiled elsewhere.

  Attributes:
    loop: its step, from parameters, state and number to the next ones.
  """

  def __init__(self, setting: Setting, tx: optax.GradientTransformation):
    self.setting, self._tx = setting, tx
    train, self._held_out = sources()
    self._train = jnp.asarray(train)
    sizes = setting.width, setting.layers, setting.heads
    self._model = Transformer(256, *sizes, dtype=jnp.bfloat16)
    self.loop = Loop(self._start, self._step)

  def _start(self) -> tuple[Any, Any, jax.Array]:
    tokens = jnp.zeros((1, self.setting.length), jnp.int32)
    params = self._model.init(jax.random.key(0), tokens)["params"]
    return params, self._tx.init(params), jnp.zeros((), jnp.int32)

  def _loss(self, params: Any, windows: jax.Array) -> jax.Array:
    params = jax.tree_util.tree_map_with_path(_half, params)
    windows = windows.astype(jnp.int32)
    logits = self._model.apply({"params": params}, windows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits.astype(jnp.float32), windows[:, 1:]
    )
    return losses.mean()

  def _step(self, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
    params, state, number = carry
    key = jax.random.fold_in(jax.random.key(1), number)
    last = len(self._train) - self.setting.length - 1
    starts = jax.random.randint(key, (self.setting.batch, 1), 0, last)
    windows = self._train[starts + jnp.arange(self.setting.length + 1)]
    gradients = jax.grad(self._loss)(params, windows)
    updates, state = self._tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, number + 1

  def run(self) -> dict[str, list[float]]:
    """Held-out loss in nats a byte, and the seconds of training until then."""
    held_out = self._held_out[: 16 * self.setting.batch * (self.setting.length + 1)]
    held_out = held_out.reshape(-1, self.setting.batch, self.setting.length + 1)
    measure = jax.jit(
      lambda params: jnp.mean(
        jax.lax.map(functools.partial(self._loss, params), jnp.asarray(held_out))
      )
    )
    carry = self.loop.start()
    jax.block_until_ready(measure(carry[0]))  # compiles
    found: dict[str, list[float]] = {"steps": [], "seconds": [], "loss": []}
    every, seconds = self.setting.steps // self.setting.points, 0.0
    for point in range(self.setting.points):
      jax.block_until_ready(carry)
      begun = time.perf_counter()
      for _ in range(every):
        carry = self.loop.compiled(carry)
      jax.block_until_ready(carry)
      seconds += time.perf_counter() - begun
      found["steps"].append((point + 1) * every)
      found["seconds"].append(round(seconds, 3))
      found["loss"].append(round(float(measure(carry[0])), 4))
    return found


def _half(path: tuple[Any, ...], parameter: jax.Array) -> jax.Array:
  """Half precision but for embeddings.

  A GPU adds up the gradients of a common byte by atomic operations on one row, which
  are probably slow in half precision.
  """
  return parameter if path[-1].key == "embedding" else parameter.astype(jnp.bfloat16)


def trainings(setting: Setting) -> dict[str, Training]:
  """Adam, muon and ``mbf_adam``, two settings each, all on one schedule."""

  def schedule(rate: float) -> optax.Schedule:
    warmup = max(1, round(WARMUP * setting.steps))
    return optax.warmup_cosine_decay_schedule(0, rate, warmup, setting.steps)

  found = {f"train: adam, {rate:g}": optax.adam(schedule(rate)) for rate in RATES}
  for rate, other in MUONS:
    name = f"train: muon, {rate:g} and {other:g}"
    found[name] = baselines.muon(schedule(rate), schedule(other), head="Dense_0")
  for rate in RATES:
    found[f"train: mbf_adam, {rate:g}"] = mbf_optax.mbf_adam(schedule(rate))
  return {name: Training(setting, tx) for name, tx in found.items()}


@functools.cache
def sources(limit: int = 20_000_000) -> tuple[np.ndarray, np.ndarray]:
  """Bytes of the library's files to train on, and those of every tenth file."""
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  paths = sorted(p for p in folder.rglob("*.py") if "site-packages" not in p.parts)
  halves: tuple[list[bytes], list[bytes]] = [], []
  for place, path in enumerate(paths):
    halves[place % 10 == 9].append(path.read_bytes())
  train, held_out = (np.frombuffer(b"".join(h)[:limit], np.uint8) for h in halves)
  return train, held_out


def table_of(losses: Mapping[str, Mapping[str, list[float]]]) -> str:
  """Held-out losses in the end, and in the seconds of the fastest training."""
  if not losses:
    return "No training was run."
  budget = min(found["seconds"][-1] for found in losses.values())
  rows = []
  for name, found in losses.items():
    in_time = np.interp(budget, found["seconds"], found["loss"])
    rows.append(
      [
        name,
        f"{found['loss'][-1]:.3f}",
        f"{in_time:.3f}",
        f"{1e3 * found['seconds'][-1] / found['steps'][-1]:.1f}",
      ]
    )
  titles = ("bytes of Python", "loss", f"loss in {budget:.3g} s", "ms a step")
  return table(titles, rows)
