"""Trains many settings of an optimizer, from several seeds, side by side under one jit.

Two nested ``vmap``s, over settings and over seeds, run whole chunks of training steps.
The optimizer is built inside from traced hyperparameters. Whole numbers in its state
(step counters) stay out of the ``vmap``s, so that a ``lax.cond`` on them stays one and
a refresh every hundred steps costs what it should. On a CPU, where side by side is
slower, runs take turns: :mod:`~benchmarks.paper.apart`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.paper import apart, exponents
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.methods import Gradient, Optimizer, Setting
from benchmarks.paper.steps import Carry, batch_rows, in_calls, run_chunk, take
from benchmarks.paper.tasks import Batch, Metrics, Task, Variables

LONGEST = 1_000
"""Steps of a chunk, at most: on a GPU one call, which no checkpoint interrupts."""


class Runs(NamedTuple):
  """Trainings of one optimizer.

  Attributes:
    settings: hyperparameters, one for each entry of the first axis.
    losses: ``(settings, seeds, steps)``, the mini-batch loss before each step.
    at: ``(points,)``, numbers of steps after which metrics were taken.
    metrics: by name, ``(settings, seeds, points)``: ``"train loss"``, ``"valid loss"``,
      ``"test loss"``
      and whatever else the task measures.
  """

  settings: list[Setting]
  losses: np.ndarray
  at: np.ndarray
  metrics: dict[str, np.ndarray]

  def final(self, metric: str) -> np.ndarray:
    """``(settings, seeds)``: the last value of a metric."""
    return self.metrics[metric][..., -1]

  def diverged(self) -> np.ndarray:
    """``(settings, seeds)``: whether the training loss is not below its first value."""
    losses = self.metrics["train loss"]
    return ~(losses[..., -1] < losses[..., 0])

  def best(self, metric: str = "train loss", largest: bool = False) -> int:
    """Index of the best setting by the seeds' mean, of those that never diverged.

    The first one if all did.
    """
    mean = self.final(metric).mean(-1)
    valid = np.isfinite(mean) & ~self.diverged().any(-1)
    return int(np.where(valid, -mean if largest else mean, math.inf).argmin())

  def only(self, index: int) -> "Runs":
    """The runs of one setting."""
    return self._replace(
      settings=[self.settings[index]],
      losses=self.losses[index : index + 1],
      metrics={k: v[index : index + 1] for k, v in self.metrics.items()},
    )


class Progress(NamedTuple):
  """What a resumed training needs besides the number of its steps."""

  carry: Carry
  losses: np.ndarray
  metrics: dict[str, np.ndarray]


def train(
  task: Task,
  optimizer: Optimizer,
  settings: Sequence[Setting] | None = None,
  seeds: Sequence[int] = (0,),
  points: int = 10,
  chunks: int = 1,
  bar: tqdm | None = None,
  checkpoint: Checkpoint | None = None,
) -> Runs:
  """Trains every setting from every seed.

  Args:
    task: what to train.
    optimizer: how; its ``settings`` are the default.
    settings: settings to train with.
    seeds: of the first parameters, the order of the data and everything random.
    points: how many times metrics are taken after the first time, at the start, evenly
      spaced.
    chunks: parts of what lies between two points, or more of them where these would be
      longer than ``LONGEST`` steps; a checkpoint may follow each.
    bar: a progress bar that is advanced by one for a step of a run.
    checkpoint: where to save after chunks, and whether to resume from there.

  Returns:
    The runs.
  """
  settings = list(optimizer.settings if settings is None else settings)
  trainer = Trainer(task, optimizer, settings, seeds)
  steps = optimizer.steps_of(task)
  at, ends = _ends(steps, points, chunks)
  restored = checkpoint and checkpoint.restore(trainer.expected(len(at)))
  if restored:
    done, progress = restored
  else:
    done, progress = 0, trainer.start(len(at))
    trainer.evaluate(progress, 0)
  _update(bar, done * len(settings) * len(seeds))
  for end in ends:
    if end <= done:
      continue
    carry, losses = trainer.advance(progress.carry, done, end - done)
    progress.losses[..., done:end] = losses
    progress = progress._replace(carry=carry)
    if end in at:
      trainer.evaluate(progress, at.index(end))
    _update(bar, (end - done) * len(settings) * len(seeds))
    done = end
    if checkpoint is not None:
      checkpoint.save(done, progress, last=done == steps)
  return Runs(settings, progress.losses, np.array(at), progress.metrics)


def _ends(steps: int, points: int, chunks: int) -> tuple[list[int], list[int]]:
  """Where metrics are taken, from 0 on, and where chunks end, those among them."""
  between = math.ceil(steps / points)
  least = max(chunks, math.ceil(between / LONGEST))
  # Parts of one length are one program, if some number of them makes that possible.
  parts = next((n for n in range(least, 2 * least) if between % n == 0), least)
  length = math.ceil(between / parts)
  at = [*range(0, steps, between), steps]
  inner = (
    step
    for begin, end in itertools.pairwise(at)
    for step in range(begin + length, end, length)
  )
  return at, sorted({*at[1:], *inner})


def _update(bar: tqdm | None, steps: int) -> None:
  if bar is not None:
    bar.update(steps)


class Compiled:
  """What is compiled for a task and an optimizer, whatever its settings and seeds."""

  def __init__(
    self,
    task: Task,
    build: Callable[..., optax.GradientTransformation],
    gradient: Gradient,
    common: tuple[str, ...],
    names: tuple[str, ...],
  ):
    self.train = jax.tree.map(jnp.asarray, task.train)
    self.axes = _batched_axes(task, build, names)
    self.hyper_axes = {name: None if name in common else 0 for name in names}
    chunk = functools.partial(run_chunk, task, build, gradient)
    self.alone = jax.jit(chunk, donate_argnums=1)
    inner = jax.vmap(chunk, (None, self.axes, 0, 0, None, None), (self.axes, 0))
    outer = jax.vmap(inner, (self.hyper_axes, self.axes, *[None] * 4), (self.axes, 0))
    self.chunk = jax.jit(outer, donate_argnums=1)
    self.fresh = functools.partial(_fresh, task, build)
    sets = {"train": task.train, "valid": task.valid, "test": task.test}
    slices = {name: _slices(task, data) for name, data in sets.items()}
    metrics = functools.partial(_metrics, task, slices)
    self.metrics = jax.jit(jax.vmap(jax.vmap(metrics)))
    self.apart = apart.is_faster()
    self.metrics_alone = functools.partial(apart.metrics, jax.jit(task.metrics), slices)


_first_variables = functools.lru_cache(maxsize=8)(lambda task: jax.jit(task.init))
_compiled = functools.lru_cache(maxsize=16)(Compiled)


class Trainer:
  """Chunks of training for a number of settings and seeds."""

  def __init__(
    self,
    task: Task,
    optimizer: Optimizer,
    settings: Sequence[Setting],
    seeds: Sequence[int],
  ):
    self._task, self._optimizer, self._seeds = task, optimizer, list(seeds)
    self._shape = len(settings), len(self._seeds)
    columns = {name: [setting[name] for setting in settings] for name in settings[0]}
    self._hyper = {
      name: jnp.float32(values[0] if name in optimizer.common else values)
      for name, values in columns.items()
    }
    self._keys = jax.vmap(jax.random.key)(jnp.asarray(self._seeds))
    self.compiled = _compiled(
      task, optimizer.build, optimizer.gradient, optimizer.common, tuple(columns)
    )

  def start(self, points: int) -> Progress:
    """Every run before its first step, with room for metrics at a number of points."""
    if self.compiled.apart and self._optimizer.prepare is None:
      layout, each = self.expected(points).carry, np.ndindex(self._shape)
      fresh = (
        self.compiled.fresh(self._setting(setting), self._keys[seed])
        for setting, seed in each
      )
      return self._progress(points, apart.beside(layout, fresh))
    order = self._order(0, self._task.warm_batches)
    return self._progress(
      points, self._each(self._begin)(self._hyper, self._keys, order)
    )

  def expected(self, points: int) -> Progress:
    """The shapes of ``start``."""
    fresh = self._each(lambda hyper, key, order: self.compiled.fresh(hyper, key))
    order = self._order(0, 1)
    return self._progress(points, jax.eval_shape(fresh, self._hyper, self._keys, order))

  def _each(self, begin: Callable[..., Carry]) -> Callable[..., Carry]:
    """``begin`` for all settings and seeds."""
    inner = jax.vmap(begin, (None, 0, 0), self.compiled.axes)
    return jax.vmap(inner, (self.compiled.hyper_axes, None, None), self.compiled.axes)

  def _progress(self, points: int, carry: Carry) -> Progress:
    of_data = jax.eval_shape(self.compiled.metrics, carry.variables)
    names = [*of_data, *exponents.names(carry.state)]
    return Progress(
      carry,
      np.full((*self._shape, self._optimizer.steps_of(self._task)), np.nan, np.float32),
      {name: np.full((*self._shape, points), np.nan, np.float32) for name in names},
    )

  def advance(self, carry: Carry, done: int, steps: int) -> tuple[Carry, np.ndarray]:
    """The runs after ``steps`` more steps, and losses ``(settings, seeds, steps)``."""
    arguments = self.arguments(carry, done, steps)
    if self.compiled.apart:

      def trained(run: tuple[int, ...]) -> tuple[Carry, np.ndarray]:
        return in_calls(self.compiled.alone, self.one(arguments, run))

      return apart.join(carry, apart.each(trained, self._shape))
    carry, losses = in_calls(self.compiled.chunk, arguments)
    return carry, np.asarray(losses)

  def arguments(self, carry: Carry, done: int, steps: int) -> tuple:
    """What ``compiled.chunk`` takes."""
    numbers = jnp.arange(done, done + steps)
    order = self._order(done, steps)
    return self._hyper, carry, self._keys, order, numbers, self.compiled.train

  def one(self, arguments: tuple, run: tuple[int, int]) -> tuple:
    """``arguments`` of one setting and seed, for ``compiled.alone``."""
    _, carry, keys, order, numbers, data = arguments
    setting, seed = run
    carry = apart.select(carry, run)
    return self._setting(setting), carry, keys[seed], order[seed], numbers, data

  def _setting(self, index: int) -> dict[str, jax.Array]:
    return {
      name: value if value.ndim == 0 else value[index]
      for name, value in self._hyper.items()
    }

  def evaluate(self, progress: Progress, point: int) -> None:
    """Enters metrics on training and held-out data into ``progress``."""
    variables = progress.carry.variables
    if self.compiled.apart:

      def measured(run: tuple[int, ...]) -> dict[str, float]:
        return self.compiled.metrics_alone(apart.select(variables, run))

      values = apart.join_metrics(apart.each(measured, self._shape), self._shape)
    else:
      values = jax.device_get(self.compiled.metrics(variables))
    values |= exponents.measured(progress.carry.state)
    for name, value in values.items():
      progress.metrics[name][..., point] = value

  def _begin(
    self, hyper: dict[str, jax.Array], key: jax.Array, order: jax.Array
  ) -> Carry:
    """One run before its first step, warm where the optimizer prepares it."""
    carry, optimizer = self.compiled.fresh(hyper, key), self._optimizer
    if optimizer.prepare is None:
      return carry
    batches = (take(self.compiled.train, rows) for rows in order)
    tx, task = optimizer.build(**hyper), self._task
    state = optimizer.prepare(task, tx, carry.state, carry.variables, batches)
    return carry._replace(state=state)

  def _order(self, done: int, steps: int) -> jax.Array:
    rows = [batch_rows(self._task, seed, done, steps) for seed in self._seeds]
    return jnp.asarray(np.stack(rows))


def _metrics(task: Task, slices: dict[str, Batch], variables: Variables) -> Metrics:
  """Means of the metrics over slices ``(slices, rows, ...)`` of data."""
  means = {}
  for name, data in slices.items():
    values = jax.lax.map(lambda batch: task.metrics(variables, batch), data)
    means |= {f"{name} {metric}": value.mean(0) for metric, value in values.items()}
  return means


def _slices(task: Task, data: Batch) -> Batch:
  """Evenly spread rows of ``data``, as many as the task evaluates, in batches."""
  size = len(jax.tree.leaves(data)[0])
  batch = min(task.batch_size, size)
  count = max(1, min(size, task.evaluated) // batch)
  rows = np.linspace(0, size - 1, count * batch).astype(np.int32)
  return jax.tree.map(jnp.asarray, take(data, rows.reshape(count, batch)))


def _fresh(
  task: Task,
  build: Callable[..., optax.GradientTransformation],
  hyper: dict[str, jax.Array],
  key: jax.Array,
) -> Carry:
  """A run before its first step; a network's beginning serves all optimizers."""
  variables = _first_variables(task)(key)
  return Carry(variables, _first_state(build, hyper, variables["params"]))


@functools.partial(jax.jit, static_argnums=0)
def _first_state(
  build: Callable[..., optax.GradientTransformation],
  hyper: dict[str, jax.Array],
  params: optax.Params,
) -> optax.OptState:
  return build(**hyper).init(params)


def _batched_axes(
  task: Task,
  build: Callable[..., optax.GradientTransformation],
  names: tuple[str, ...],
) -> Carry:
  """Axis 0 for everything but scalar whole numbers, which all runs share."""
  hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
  key = jax.eval_shape(lambda: jax.random.key(0))
  carry = jax.eval_shape(functools.partial(_fresh, task, build), hyper, key)

  def axis(leaf: jax.ShapeDtypeStruct) -> int | None:
    shared = leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
    return None if shared else 0

  return jax.tree.map(axis, carry)
