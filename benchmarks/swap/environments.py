"""CartPole-v1 and Pendulum-v1 of Gymnasium in plain JAX."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_Step = tuple[jax.Array, jax.Array, jax.Array]


class Environment(NamedTuple):
  """A task for reinforcement learning.

  Attributes:
    actions: how many there are to choose from, or how many numbers an action has.
    discrete: whether an action is a choice.
    limit: steps of an episode at most.
    start: a state from a key.
    observe: what the policy sees of a state.
    step: from a state and an action the next state, the reward, and whether the task
      was failed, which ends the episode.
  """

  actions: int
  discrete: bool
  limit: int
  start: Callable[[jax.Array], jax.Array]
  observe: Callable[[jax.Array], jax.Array]
  step: Callable[[jax.Array, jax.Array], _Step]


def _cartpole() -> Environment:
  """Of place, speed, angle and turning speed; one for every step upright."""
  gravity, pole, total, moment, dt = 9.8, 0.1, 1.1, 0.05, 0.02

  def start(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

  def step(state: jax.Array, action: jax.Array) -> _Step:
    _, speed, angle, turning = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = (20.0 * action - 10.0 + moment * turning**2 * sine) / total
    turn = gravity * sine - cosine * push
    turn = turn / (0.5 * (4 / 3 - pole * cosine**2 / total))
    push = push - moment * turn * cosine / total
    state = state + dt * jnp.stack([speed, push, turning, turn])
    failed = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 12 * jnp.pi / 180)
    return state, jnp.ones(()), failed

  return Environment(2, True, 500, start, lambda state: state, step)


def _pendulum() -> Environment:
  """Of angle and speed; angle, speed and torque cost, and nothing fails."""
  dt = 0.05

  def start(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (2,), minval=-1, maxval=1) * jnp.array([jnp.pi, 1])

  def observe(state: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

  def step(state: jax.Array, action: jax.Array) -> _Step:
    angle, speed = state
    torque = jnp.clip(action[0], -2, 2)
    centered = jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi
    cost = centered**2 + 0.1 * speed**2 + 0.001 * torque**2
    speed = jnp.clip(speed + (15 * jnp.sin(angle) + 3 * torque) * dt, -8, 8)
    return jnp.stack([angle + speed * dt, speed]), -cost, jnp.zeros((), bool)

  return Environment(1, False, 200, start, observe, step)


ENVIRONMENTS = {"cartpole": _cartpole(), "pendulum": _pendulum()}
