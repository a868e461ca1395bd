"""Proximal policy optimization: the whole training of a seed as one function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.swap import policy
from benchmarks.swap.environments import ENVIRONMENTS

COPIES, CLIP, LAMBDA = 4, 0.2, 0.95
LAST = 20  # updates over whose episodes the return is averaged


class Task(NamedTuple):
  """An environment with the settings that are usual for it.

  Attributes:
    environment: a key of ``ENVIRONMENTS``.
    rate: Adam's usual learning rate.
    annealed: whether it falls to zero over the training.
    why: where the settings are from.
    rollout: steps of each of the four copies between updates of the policy.
    epochs: passes over them.
    batch: size of a mini-batch.
    discount: of later rewards.
    entropy: weight of the policy's entropy in the loss.
    beyond: whether an episode that the time limit cuts counts what the critic expects
      beyond it; otherwise it ends there like any other.
    steps: of the training, over all copies.
  """

  environment: str
  rate: float
  annealed: bool
  why: str
  rollout: int
  epochs: int
  batch: int
  discount: float
  entropy: float
  beyond: bool
  steps: int = 300_000

  @property
  def updates(self) -> int:
    """Rollouts of the whole training."""
    return self.steps // (self.rollout * COPIES)

  @property
  def schedule(self) -> optax.ScalarOrSchedule:
    """The learning rate by the optimizer's steps."""
    if not self.annealed:
      return self.rate
    batches = self.epochs * (self.rollout * COPIES // self.batch)
    return optax.linear_schedule(self.rate, 0.0, self.updates * batches)


TASKS = {
  "cartpole": Task("cartpole", 2.5e-4, True, "CleanRL", 128, 4, 128, 0.99, 0.01, False),
  "pendulum": Task(
    "pendulum", 1e-3, False, "RL Baselines3 Zoo", 1024, 10, 64, 0.9, 0.0, True
  ),
}


class Rollout(NamedTuple):
  """What happened, ``(steps, copies)`` each.

  Attributes:
    seen: observations.
    action: what was done.
    log_probability: of the action when it was done.
    value: what the critic expected.
    reward: with what the critic expected beyond the time limit where that was reached.
    ended: whether the episode ended.
    total: return of the episode so far.
  """

  seen: jax.Array
  action: jax.Array
  log_probability: jax.Array
  value: jax.Array
  reward: jax.Array
  ended: jax.Array
  total: jax.Array


def trainer(
  task: Task, tx: optax.GradientTransformation
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """The training of several seeds at once.

  Refreshes that depend on the count of steps alone stay under their condition when the
  whole training is mapped over seeds. Where an optimizer's do not, every step pays for
  one; the updates are the same.

  Args:
    task: what to train.
    tx: the optimizer, without the clipping of gradients that belongs to the method.

  Returns:
    From ``(seeds,)`` keys, by seed and update, the sum of the returns of the episodes
    that ended, and their number.
  """
  environment = ENVIRONMENTS[task.environment]
  model = policy.ActorCritic(environment)
  tx = optax.chain(optax.clip_by_global_norm(0.5), tx)

  @jax.jit
  def init(key: jax.Array) -> Any:
    seen = environment.observe(environment.start(key))
    return model.init(key, seen)["params"]

  def train(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    key_start, key = jax.random.split(key)
    states = jax.vmap(environment.start)(jax.random.split(key_start, COPIES))
    zeros = jnp.zeros(COPIES)
    carry = params, tx.init(params), (states, zeros.astype(int), zeros)

    def update(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
      params, state, world = carry
      key_rollout, key_epochs = jax.random.split(key)
      world, last, rollout = _rollout(task, model, params, world, key_rollout)
      params, state = _improve(
        task, model, tx, (params, state), _targets(task, rollout, last), key_epochs
      )
      returns = jnp.sum(rollout.total * rollout.ended)
      return (params, state, world), (returns, rollout.ended.sum())

    return jax.lax.scan(update, carry, jax.random.split(key, task.updates))[1]

  train_all = jax.jit(jax.vmap(train))

  def run(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Seed by seed: orthogonal starts are decompositions by LAPACK, and some jaxlib
    # releases never return from several batched ones in one program on a CPU.
    params = [init(key) for key in keys]
    return train_all(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), keys)

  return run


def _rollout(
  task: Task, model: policy.ActorCritic, params: Any, world: tuple, key: jax.Array
) -> tuple[tuple, jax.Array, Rollout]:
  """The worlds afterwards, what the critic expects of them, and what happened."""
  environment = model.environment

  def step(world: tuple, key: jax.Array) -> tuple[tuple, Rollout]:
    states, age, total = world
    key_action, key_start = jax.random.split(key)
    seen = jax.vmap(environment.observe)(states)
    actor, value = model.apply({"params": params}, seen)
    action = policy.sample(actor, key_action)
    after, reward, failed = jax.vmap(environment.step)(states, action)
    age, total = age + 1, total + reward
    cut = (age >= environment.limit) & ~failed
    ended = failed | cut
    if task.beyond:
      ahead = model.apply({"params": params}, jax.vmap(environment.observe)(after))[1]
      earned = reward + task.discount * ahead * cut
    else:
      earned = reward
    happened = Rollout(
      seen,
      action,
      policy.log_probability(actor, action),
      value,
      earned,
      ended,
      total,
    )
    fresh = jax.vmap(environment.start)(jax.random.split(key_start, COPIES))
    states = jnp.where(ended[:, None], fresh, after)
    return (states, jnp.where(ended, 0, age), jnp.where(ended, 0, total)), happened

  world, rollout = jax.lax.scan(step, world, jax.random.split(key, task.rollout))
  last = model.apply({"params": params}, jax.vmap(environment.observe)(world[0]))[1]
  return world, last, rollout


def _targets(task: Task, rollout: Rollout, last: jax.Array) -> tuple[jax.Array, ...]:
  """Observations, actions, their log probabilities, advantages and values to learn."""

  def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
    advantage, after = carry
    reward, value, ended = at
    surprise = reward + task.discount * after * (1 - ended) - value
    advantage = surprise + task.discount * LAMBDA * (1 - ended) * advantage
    return (advantage, value), advantage

  inputs = rollout.reward, rollout.value, rollout.ended.astype(rollout.value.dtype)
  start = jnp.zeros_like(last), last
  advantage = jax.lax.scan(step, start, inputs, reverse=True)[1]
  seen, action, probability = rollout[:3]
  all_of = seen, action, probability, advantage, advantage + rollout.value
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), all_of)


def _improve(
  task: Task,
  model: policy.ActorCritic,
  tx: optax.GradientTransformation,
  carry: tuple[Any, Any],
  examples: tuple[jax.Array, ...],
  key: jax.Array,
) -> tuple[Any, Any]:
  """All epochs of mini-batches: new parameters and the optimizer's new state."""
  size = len(examples[0])

  def loss(params: Any, batch: tuple[jax.Array, ...]) -> jax.Array:
    seen, action, before, advantage, target = batch
    actor, value = model.apply({"params": params}, seen)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = jnp.exp(policy.log_probability(actor, action) - before)
    clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    error = jnp.mean((value - target) ** 2)
    surprise = policy.entropy(actor).mean()
    return 0.5 * 0.5 * error - gain.mean() - task.entropy * surprise

  def step(carry: tuple, chosen: jax.Array) -> tuple[tuple, None]:
    params, state = carry
    gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[chosen], examples))
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  def shuffled(key: jax.Array) -> jax.Array:
    return jax.random.permutation(key, size).reshape(-1, task.batch)

  order = jax.vmap(shuffled)(jax.random.split(key, task.epochs))
  return jax.lax.scan(step, carry, order.reshape(-1, task.batch))[0]
