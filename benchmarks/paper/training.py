"""Trains many settings of an optimizer, from several seeds, side by side under one jit.

Two nested ``vmap``s, over settings and over seeds, run whole chunks of training steps.
The optimizer is built inside from traced hyperparameters. Whole numbers in its state
(step counters) stay out of the ``vmap``s, so that a ``lax.cond`` on them stays one and a
refresh every hundred steps costs what it should.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.tasks import Batch, Metrics, Task, Variables

_WARM_BATCHES = 40  # of a warm start

Setting = dict[str, float]
Gradient = Callable[
  [Task, Variables, Batch, jax.Array],
  tuple[jax.Array, Variables, optax.Updates, dict[str, Any]],
]


def empirical(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """Loss, new collections, gradient, and no further arguments of the update."""

  def loss(params: optax.Params) -> tuple[jax.Array, Variables]:
    return task.loss({**variables, "params": params}, batch, key)

  (value, mutable), gradient = jax.value_and_grad(loss, has_aux=True)(
    variables["params"]
  )
  return value, mutable, gradient, {}


def with_sampled(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """``empirical``, and the gradient at sampled targets that MBF-True asks for."""
  loss_key, sample_key = jax.random.split(key)
  value, mutable, gradient, _ = empirical(task, variables, batch, loss_key)

  def loss(params: optax.Params) -> jax.Array:
    return task.sampled_loss({**variables, "params": params}, batch, sample_key)

  sampled = jax.grad(loss)(variables["params"])
  return value, mutable, gradient, {"curvature_gradients": sampled}


class Optimizer(NamedTuple):
  """An optimizer with the settings to try it with.

  Attributes:
    build: from the hyperparameters of a setting, traced, to a transformation.
    settings: values of those hyperparameters, under the same names in each.
    gradient: what a step computes from a batch.
    prepare: from the task, the transformation, its fresh state, the variables and an
      iterator of batches to the state to train with: a warm start. Not jitted.
  """

  build: Callable[..., optax.GradientTransformation]
  settings: Sequence[Setting]
  gradient: Gradient = empirical
  prepare: Callable[..., Any] | None = None


class Runs(NamedTuple):
  """Trainings of one optimizer.

  Attributes:
    settings: hyperparameters, one for each entry of the first axis.
    losses: ``(settings, seeds, steps)``, the mini-batch loss before each step.
    at: ``(points,)``, numbers of steps after which metrics were taken.
    metrics: by name, ``(settings, seeds, points)``: ``"train loss"``, ``"test loss"``
      and whatever else the task measures.
  """

  settings: list[Setting]
  losses: np.ndarray
  at: np.ndarray
  metrics: dict[str, np.ndarray]

  def final(self, metric: str) -> np.ndarray:
    """``(settings, seeds)``: the last value of a metric."""
    return self.metrics[metric][..., -1]

  def best(self, metric: str = "train loss", largest: bool = False) -> int:
    """Index of the best setting by the seeds' mean; a setting with NaN loses."""
    mean = self.final(metric).mean(-1)
    worst = -math.inf if largest else math.inf
    mean = np.where(np.isfinite(mean), mean, worst)
    return int(mean.argmax() if largest else mean.argmin())

  def only(self, index: int) -> "Runs":
    """The runs of one setting."""
    return self._replace(
      settings=[self.settings[index]],
      losses=self.losses[index : index + 1],
      metrics={k: v[index : index + 1] for k, v in self.metrics.items()},
    )


class Carry(NamedTuple):
  """What a training step changes."""

  variables: Variables
  state: optax.OptState


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
  bar: tqdm | None = None,
  checkpoint: Checkpoint | None = None,
) -> Runs:
  """Trains every setting from every seed.

  Args:
    task: what to train.
    optimizer: how; its ``settings`` are the default.
    settings: settings to train with.
    seeds: of the first parameters, the order of the data and everything random.
    points: how many times metrics are taken, evenly spaced; training is compiled in
      chunks of the steps between them.
    bar: a progress bar that is advanced by one for a step of a run.
    checkpoint: where to save after chunks, and whether to resume from there.

  Returns:
    The runs.
  """
  settings = list(optimizer.settings if settings is None else settings)
  trainer = Trainer(task, optimizer, settings, seeds)
  length = math.ceil(task.steps / points)
  at = np.array([*range(length, task.steps, length), task.steps])
  done, progress = 0, trainer.start(len(at))
  if checkpoint is not None:
    done, progress = checkpoint.restore(progress)
  _update(bar, done * len(settings) * len(seeds))
  for point, end in enumerate(at):
    if end <= done:
      continue
    carry, losses = trainer.advance(progress.carry, done, int(end) - done)
    progress.losses[..., done:end] = losses
    for name, values in trainer.evaluate(carry).items():
      progress.metrics[name][..., point] = values
    progress = progress._replace(carry=carry)
    _update(bar, (end - done) * len(settings) * len(seeds))
    done = int(end)
    if checkpoint is not None:
      checkpoint.save(done, progress, last=done == task.steps)
  return Runs(settings, progress.losses, at, progress.metrics)


def _update(bar: tqdm | None, steps: int) -> None:
  if bar is not None:
    bar.update(steps)


class Trainer:
  """Compiled chunks of training for a number of settings and seeds."""

  def __init__(
    self,
    task: Task,
    optimizer: Optimizer,
    settings: Sequence[Setting],
    seeds: Sequence[int],
  ):
    self._task, self._optimizer, self._seeds = task, optimizer, list(seeds)
    self._shape = len(settings), len(self._seeds)
    self._hyper = {
      name: jnp.asarray([setting[name] for setting in settings], jnp.float32)
      for name in settings[0]
    }
    self._keys = jax.vmap(jax.random.key)(jnp.asarray(self._seeds))
    self._train = jax.tree.map(jnp.asarray, task.train)
    fresh = functools.partial(_fresh, task, optimizer)
    one = {name: jnp.float32(value) for name, value in settings[0].items()}
    self._axes = _batched_axes(jax.eval_shape(fresh, one, self._keys[0]))
    chunk = functools.partial(run_chunk, task, optimizer)
    inner = jax.vmap(chunk, (None, self._axes, 0, 0, None, None), (self._axes, 0))
    outer = jax.vmap(inner, (0, self._axes, *[None] * 4), (self._axes, 0))
    self.chunk = jax.jit(outer, donate_argnums=1)
    self._evaluate = jax.jit(self._metrics)

  def start(self, points: int) -> Progress:
    """Every run before its first step."""
    begin = functools.partial(_begin, self._task, self._optimizer)
    inner = jax.vmap(begin, (None, 0, 0, None), self._axes)
    outer = jax.vmap(inner, (0, None, None, None), self._axes)
    order = self._order(0, _WARM_BATCHES)
    carry = outer(self._hyper, self._keys, order, self._train)
    names = jax.eval_shape(self._metrics, carry.variables)
    return Progress(
      carry,
      np.full((*self._shape, self._task.steps), np.nan, np.float32),
      {name: np.full((*self._shape, points), np.nan, np.float32) for name in names},
    )

  def advance(self, carry: Carry, done: int, steps: int) -> tuple[Carry, jax.Array]:
    """The runs after ``steps`` more steps, and losses ``(settings, seeds, steps)``."""
    return self.chunk(*self.arguments(carry, done, steps))

  def arguments(self, carry: Carry, done: int, steps: int) -> tuple:
    """What ``chunk`` takes."""
    numbers = jnp.arange(done, done + steps)
    order = self._order(done, steps)
    return self._hyper, carry, self._keys, order, numbers, self._train

  def evaluate(self, carry: Carry) -> dict[str, np.ndarray]:
    """Metrics on training and held-out data, each ``(settings, seeds)``."""
    return jax.device_get(self._evaluate(carry.variables))

  def _order(self, done: int, steps: int) -> jax.Array:
    rows = [batch_rows(self._task, seed, done, steps) for seed in self._seeds]
    return jnp.asarray(np.stack(rows))

  def _metrics(self, variables: Variables) -> Metrics:
    values = {}
    for name, data in (("train", self._task.train), ("test", self._task.test)):
      mean = functools.partial(mean_metrics, self._task, _slices(self._task, data))
      metrics = jax.vmap(jax.vmap(mean))(variables)
      values |= {f"{name} {metric}": value for metric, value in metrics.items()}
    return values


def run_chunk(
  task: Task,
  optimizer: Optimizer,
  hyper: dict[str, jax.Array],
  carry: Carry,
  key: jax.Array,
  order: jax.Array,
  numbers: jax.Array,
  data: Batch,
) -> tuple[Carry, jax.Array]:
  """Steps of one run.

  Args:
    task: what to train.
    optimizer: how.
    hyper: one setting.
    carry: the run so far.
    key: of the run.
    order: ``(steps, batch)``, rows of ``data``.
    numbers: ``(steps,)``, steps done before each step.
    data: the training data.

  Returns:
    The run afterwards, and the losses before each step.
  """
  tx = optax.with_extra_args_support(optimizer.build(**hyper))

  def step(carry: Carry, inputs: tuple) -> tuple[Carry, jax.Array]:
    number, rows = inputs
    variables = carry.variables
    loss, mutable, gradient, extra = optimizer.gradient(
      task, variables, _take(data, rows), jax.random.fold_in(key, number)
    )
    params = variables["params"]
    updates, state = tx.update(gradient, carry.state, params, **extra)
    params = optax.apply_updates(params, updates)
    return Carry({**variables, **mutable, "params": params}, state), loss

  return jax.lax.scan(step, carry, (numbers, order))


@functools.lru_cache(maxsize=64)
def _epoch(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def batch_rows(task: Task, seed: int, done: int, steps: int) -> np.ndarray:
  """``(steps, batch)``: the rows of each batch, shuffled anew in every epoch."""
  size = len(jax.tree.leaves(task.train)[0])
  batches = size // task.batch_size
  rows = []
  for step in range(done, done + steps):
    epoch, index = divmod(step, batches)
    start = index * task.batch_size
    rows.append(_epoch(seed, epoch, size)[start : start + task.batch_size])
  return np.stack(rows)


def mean_metrics(task: Task, slices: Batch, variables: Variables) -> Metrics:
  """Means of the metrics over slices ``(slices, rows, ...)`` of data."""
  values = jax.lax.map(lambda batch: task.metrics(variables, batch), slices)
  return jax.tree.map(lambda value: value.mean(0), values)


def _slices(task: Task, data: Batch) -> Batch:
  """Evenly spread rows of ``data``, as many as the task evaluates, in batches."""
  size = len(jax.tree.leaves(data)[0])
  batch = min(task.batch_size, size)
  count = max(1, min(size, task.evaluated) // batch)
  rows = np.linspace(0, size - 1, count * batch).astype(np.int32)
  return _take(jax.tree.map(jnp.asarray, data), rows.reshape(count, batch))


def _take(data: Batch, rows: Any) -> Batch:
  return jax.tree.map(lambda array: array[rows], data)


def _fresh(
  task: Task, optimizer: Optimizer, hyper: dict[str, jax.Array], key: jax.Array
) -> Carry:
  variables = task.init(key)
  return Carry(variables, optimizer.build(**hyper).init(variables["params"]))


def _begin(
  task: Task,
  optimizer: Optimizer,
  hyper: dict[str, jax.Array],
  key: jax.Array,
  order: jax.Array,
  data: Batch,
) -> Carry:
  """One run before its first step, warm where the optimizer prepares it."""
  carry = jax.jit(functools.partial(_fresh, task, optimizer))(hyper, key)
  if optimizer.prepare is None:
    return carry
  batches = (_take(data, rows) for rows in order)
  tx = optimizer.build(**hyper)
  state = optimizer.prepare(task, tx, carry.state, carry.variables, batches)
  return carry._replace(state=state)


def _batched_axes(carry: Carry) -> Carry:
  """Axis 0 for everything but scalar whole numbers, which all runs share."""

  def axis(leaf: jax.ShapeDtypeStruct) -> int | None:
    shared = leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
    return None if shared else 0

  return jax.tree.map(axis, carry)
