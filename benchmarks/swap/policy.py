"""The networks of a policy and a critic, and what the policy's distribution gives.

A policy over choices is an array of logits; one over numbers is a pair, the mean of a
normal distribution and the logarithm of its deviation.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.swap.environments import Environment

HIDDEN = 64


class ActorCritic(nn.Module):
  """Two perceptrons of two hidden layers."""

  environment: Environment

  @nn.compact
  def __call__(self, seen: jax.Array) -> tuple[Any, jax.Array]:
    def tower(name: str, outputs: int, scale: float) -> jax.Array:
      x = seen
      for layer in range(2):
        init = nn.initializers.orthogonal(2**0.5)
        x = nn.tanh(nn.Dense(HIDDEN, kernel_init=init, name=f"{name}_{layer}")(x))
      init = nn.initializers.orthogonal(scale)
      return nn.Dense(outputs, kernel_init=init, name=f"{name}_out")(x)

    policy: Any = tower("actor", self.environment.actions, 0.01)
    if not self.environment.discrete:
      shape = (self.environment.actions,)
      deviation = self.param("log_deviation", nn.initializers.zeros, shape)
      policy = policy, jnp.broadcast_to(deviation, policy.shape)
    return policy, tower("critic", 1, 1.0)[..., 0]


def sample(policy: Any, key: jax.Array) -> jax.Array:
  """An action at random."""
  if not isinstance(policy, tuple):
    return jax.random.categorical(key, policy)
  mean, log_deviation = policy
  return mean + jnp.exp(log_deviation) * jax.random.normal(key, mean.shape)


def log_probability(policy: Any, action: jax.Array) -> jax.Array:
  """Of an action, or the logarithm of its density."""
  if not isinstance(policy, tuple):
    return -optax.softmax_cross_entropy_with_integer_labels(policy, action)
  mean, log_deviation = policy
  away = (action - mean) / jnp.exp(log_deviation)
  return -jnp.sum(away**2 / 2 + log_deviation + jnp.log(2 * jnp.pi) / 2, -1)


def entropy(policy: Any) -> jax.Array:
  """Of the distribution."""
  if not isinstance(policy, tuple):
    log_all = jax.nn.log_softmax(policy)
    return -jnp.sum(jnp.exp(log_all) * log_all, -1)
  return jnp.sum(policy[1] + jnp.log(2 * jnp.pi * jnp.e) / 2, -1)
