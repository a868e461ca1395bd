"""A physics-informed network and a neural differential equation."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import mbf_optax
from benchmarks.swap.problem import Problem, drawn, squared_error

_STEPS, _TIME = 20, 0.1  # of the Runge-Kutta method, and the length of one


def poisson() -> Problem:
  """Poisson's equation on the unit square by a network, Flax Linen.

  The loss is the mean square of the equation's residual and of the boundary's; held out
  is the squared error of the solution over the solution's mean square.
  """
  model = Tanh()
  grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 2), -1).reshape(-1, 2)
  grid = jnp.asarray(grid, jnp.float32)
  rng = np.random.default_rng(0)
  inside = rng.random((20_000, 2)).astype(np.float32)
  edge = rng.random((20_000, 2)).astype(np.float32)
  side = rng.integers(2, size=len(edge))
  edge[np.arange(len(edge)), side] = rng.integers(2, size=len(edge))

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    del key

    def solution(point: jax.Array) -> jax.Array:
      return model.apply({"params": params}, point)

    residual = jax.vmap(lambda point: _laplacian(solution, point))(batch[0])
    residual = residual + 5 * jnp.pi**2 * _exact(batch[0])
    return jnp.mean(residual**2) + 100 * jnp.mean(jax.vmap(solution)(batch[1]) ** 2)

  def held_out(params: Any) -> jax.Array:
    found = jax.vmap(lambda point: model.apply({"params": params}, point))(grid)
    return squared_error(found, _exact(grid)) / jnp.mean(_exact(grid) ** 2)

  return Problem(
    "Poisson's equation",
    1e-3,
    "usual for physics-informed networks",
    steps=2000,
    init=lambda key: model.init(key, grid[0])["params"],
    loss=loss,
    batch=drawn((inside, edge), 128),
    held_out=held_out,
  )


def neural_ode() -> Problem:
  """A vector field that follows the swings of a damped pendulum, Equinox."""
  rng = np.random.default_rng(0)
  starts = rng.uniform(-2.0, 2.0, (1_256, 2)).astype(np.float32)
  paths = np.array(jax.vmap(lambda y: _trajectory(_pendulum, y))(starts))
  test = jnp.asarray(paths[:256])
  static = eqx.partition(_field(jax.random.key(0)), eqx.is_inexact_array)[1]

  def error(params: Any, paths: jax.Array) -> jax.Array:
    field = eqx.combine(params, static)
    followed = jax.vmap(lambda path: _trajectory(field, path[0]))(paths)
    return squared_error(followed, paths)

  return Problem(
    "neural ODE",
    3e-3,
    "diffrax's example",
    steps=600,
    init=lambda key: eqx.filter(_field(key), eqx.is_inexact_array),
    loss=lambda params, batch, key: error(params, batch),
    batch=drawn(paths[256:], 32),
    held_out=lambda params: error(params, test),
    partition=mbf_optax.equinox_partition,
  )


class Tanh(nn.Module):
  """Three hidden layers of 48 from a point to a number."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for _ in range(3):
      x = nn.tanh(nn.Dense(48)(x))
    return nn.Dense(1)(x)[0]


def _exact(points: jax.Array) -> jax.Array:
  """Zero on the boundary; its Laplacian is ``-5 pi^2`` times itself."""
  return jnp.sin(jnp.pi * points[:, 0]) * jnp.sin(2 * jnp.pi * points[:, 1])


def _laplacian(function: Any, point: jax.Array) -> jax.Array:
  def second(direction: jax.Array) -> jax.Array:
    def slope(x: jax.Array) -> jax.Array:
      return jax.jvp(function, (x,), (direction,))[1]

    return jax.jvp(slope, (point,), (direction,))[1]

  return jax.vmap(second)(jnp.eye(2)).sum()


def _field(key: jax.Array) -> eqx.nn.MLP:
  return eqx.nn.MLP(2, 2, 64, 2, activation=jax.nn.softplus, key=key)


def _pendulum(y: jax.Array) -> jax.Array:
  """The change of angle and speed."""
  return jnp.stack([y[1], -4 * jnp.sin(y[0]) - 0.2 * y[1]])


def _trajectory(field: Any, start: jax.Array) -> jax.Array:
  """``(steps + 1, 2)`` by the classical Runge-Kutta method."""

  def step(y: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    k1 = field(y)
    k2 = field(y + _TIME / 2 * k1)
    k3 = field(y + _TIME / 2 * k2)
    k4 = field(y + _TIME * k3)
    y = y + _TIME / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y, y

  path = jax.lax.scan(step, start, None, _STEPS)[1]
  return jnp.concatenate([start[None], path])
