"""Directions of many methods along the path of one of them (Algorithm 5)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.baselines import capture, common
from benchmarks.paper.steps import batch_rows
from benchmarks.paper.tasks import Batch, Task


class Signals(NamedTuple):
  """What methods may ask for at one point.

  Attributes:
    gradient: of the mini-batch's loss.
    sampled: of the loss at labels drawn from the network.
    factors: KFAC's, at those labels.
    examples: every example's gradient.
  """

  gradient: optax.Updates
  sampled: optax.Updates
  factors: Any
  examples: optax.Updates


class Method(NamedTuple):
  """A transformation that gives a direction, and its update's further arguments."""

  tx: optax.GradientTransformation
  arguments: Callable[[Signals], dict[str, Any]] = lambda signals: {}


class Path(NamedTuple):
  """What was seen on the leader's path.

  Attributes:
    losses: ``(steps,)``.
    layers: names of the layers.
    cosines: by method, ``(steps, layers)`` with the leader's direction.
  """

  losses: np.ndarray
  layers: list[str]
  cosines: dict[str, np.ndarray]


def signals(
  task: Task, params: optax.Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Signals]:
  """The loss of a batch, and what the methods are given."""

  def loss(params: optax.Params, batch: Batch) -> jax.Array:
    return task.loss({"params": params}, batch, key)[0]

  def sampled_loss(params: optax.Params) -> jax.Array:
    return task.sampled_loss({"params": params}, batch, key)

  value, gradient = jax.value_and_grad(loss)(params, batch)
  captured = capture(sampled_loss, params)
  single = jax.tree.map(lambda array: array[:, None], batch)
  examples = jax.vmap(jax.grad(loss), (None, 0))(params, single)
  return value, Signals(gradient, captured.gradients, captured.factors, examples)


class Company(NamedTuple):
  """The method whose steps are taken, and those that are given the same gradients."""

  leader: Method
  methods: dict[str, Method]


def follower(
  task: Task,
  gather: Callable[[jax.Array], Company],
  layers: Sequence[str],
  seed: int = 0,
) -> Callable[[float, float], Path]:
  """A function that follows a leader and compares the others' directions with its own.

  Every method keeps its own state and is given the same gradients, at the leader's
  points.

  Args:
    task: what is trained.
    gather: from a damping, traced, to the methods.
    layers: modules at the top of the network whose directions are compared. They alone
      are given to the methods, for which every layer is a matter of its own.
    seed: of the parameters, the order of the data and the sampled labels.

  Returns:
    A function of a damping and the leader's learning rate, compiled once.
  """
  key = jax.random.key(seed)
  order = jnp.asarray(batch_rows(task, seed, 0, task.steps))
  data = jax.tree.map(jnp.asarray, task.train)

  @jax.jit
  def run(damping: jax.Array, learning_rate: jax.Array) -> tuple:
    leader, methods = gather(damping)
    lead_tx = optax.with_extra_args_support(leader.tx)
    txs = {n: optax.with_extra_args_support(m.tx) for n, m in methods.items()}

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
      params, lead_state, states = carry
      number, rows = inputs
      batch = jax.tree.map(lambda array: array[rows], data)
      loss, seen = signals(task, params, batch, jax.random.fold_in(key, number))
      lead, lead_state = lead_tx.update(
        seen.gradient, lead_state, params, **leader.arguments(seen)
      )
      part = Signals(*(_only(layers, found) for found in seen))
      found, new = {}, {}
      for name, tx in txs.items():
        arguments = methods[name].arguments(part)
        along, new[name] = tx.update(part.gradient, states[name], **arguments)
        found[name] = cosines(along, _only(layers, lead))
      params = jax.tree.map(lambda p, d: p - learning_rate * d, params, lead)
      return (params, lead_state, new), (loss, found)

    params = task.init(key)["params"]
    states = {name: tx.init(_only(layers, params)) for name, tx in txs.items()}
    steps = jnp.arange(task.steps), order
    return jax.lax.scan(step, (params, lead_tx.init(params), states), steps)[1]

  names = list(gather(jnp.ones(())).methods)

  def follow(damping: float, learning_rate: float) -> Path:
    losses, found = run(jnp.float32(damping), jnp.float32(learning_rate))
    stacked = {
      name: np.stack([found[name][layer] for layer in layers], -1) for name in names
    }
    return Path(np.asarray(losses), list(layers), stacked)

  return follow


class Alignment(NamedTuple):
  """Cosines with the gradient averaged over many draws of dropout, by layer.

  Attributes:
    step: number of steps before.
    update: cosine of the optimizer's update, turned uphill.
    gradient: cosine of the gradient that the optimizer was given.
  """

  step: int
  update: dict[str, float]
  gradient: dict[str, float]


def alignment(
  task: Task,
  tx: optax.GradientTransformation,
  steps: int,
  every: int,
  draws: int = 16,
  seed: int = 0,
) -> list[Alignment]:
  """How far an optimizer's updates point along the gradient without its noise.

  Args:
    task: a task whose batches are all of its data.
    tx: the optimizer.
    steps: to train.
    every: steps between measurements.
    draws: of the task's random key that the mean gradient averages.
    seed: of everything.

  Returns:
    Measurements after ``every``, ``2 * every``, ... steps.
  """
  key = jax.random.key(seed)
  batch = jax.tree.map(jnp.asarray, task.train)

  def gradient(params: optax.Params, key: jax.Array) -> optax.Updates:
    return jax.grad(lambda p: task.loss({"params": p}, batch, key)[0])(params)

  @jax.jit
  def step(params: optax.Params, state: optax.OptState, key: jax.Array) -> tuple:
    given = gradient(params, key)
    update, state = tx.update(given, state, params)
    return optax.apply_updates(params, update), state, given, update

  @jax.jit
  def compare(params: optax.Params, given: Any, update: Any, key: jax.Array) -> tuple:
    keys = jax.random.split(key, draws)
    mean = jax.tree.map(
      lambda g: g.mean(0), jax.vmap(gradient, (None, 0))(params, keys)
    )
    uphill = jax.tree.map(jnp.negative, update)
    return cosines(uphill, mean), cosines(given, mean)

  params = task.init(key)["params"]
  state = tx.init(params)
  measured = []
  for number in range(steps):
    before, own = params, jax.random.fold_in(key, number)
    params, state, given, update = step(params, state, own)
    if (number + 1) % every == 0:
      found = compare(before, given, update, jax.random.fold_in(own, 1))
      pair = [{layer: float(c) for layer, c in part.items()} for part in found]
      measured.append(Alignment(number, *pair))
  return measured


def _only(layers: Sequence[str], modules: dict[str, Any]) -> dict[str, Any]:
  return {layer: modules[layer] for layer in layers}


def cosines(one: optax.Updates, other: optax.Updates) -> dict[str, jax.Array]:
  """The cosine of the angle of two directions in every layer."""
  first, second = by_layer(one), by_layer(other)
  return {layer: _cosine(first[layer], second[layer]) for layer in first}


def by_layer(params: optax.Params) -> dict[str, jax.Array]:
  """All parameters of a module as one vector, by the module's path."""
  layers: dict[str, list[jax.Array]] = {}
  for path, leaf in common.flatten(params).items():
    layers.setdefault(path.rpartition("/")[0], []).append(leaf)
  return {
    layer: jnp.concatenate([leaf.ravel() for leaf in leaves])
    for layer, leaves in layers.items()
  }


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Of vectors of any length, without overflow or underflow of their squares."""
  a, b = (v / jnp.maximum(jnp.abs(v).max(), jnp.finfo(v.dtype).tiny) for v in (a, b))
  return a @ b / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)
