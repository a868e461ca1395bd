"""Regression on tables: with much noise, and with inputs of very unlike scales."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.swap.problem import Problem, drawn, squared_error

_INPUTS = 16


def noisy() -> Problem:
  """Batches of four whose targets have as much noise as signal.

  Held out is the squared error against the targets without their noise.
  """
  rng = np.random.default_rng(0)
  x, y = _table(rng, 20_000)
  noise = y.std() * rng.normal(size=y.shape)
  return _regression(
    "noisy regression",
    (x, y + noise.astype(np.float32)),
    _table(rng, 4_000),
    (4, 10_000),
  )


def badly_scaled() -> Problem:
  """Inputs of scales from 1e-2 to 1e2, as they come out of a table."""
  rng = np.random.default_rng(1)
  scales = np.geomspace(1e-2, 1e2, _INPUTS).astype(np.float32)[rng.permutation(_INPUTS)]
  train, test = _table(rng, 20_000), _table(rng, 4_000)
  return _regression(
    "badly scaled regression",
    (train[0] * scales, train[1]),
    (test[0] * scales, test[1]),
    (64, 6000),
  )


def raw_table() -> Problem:
  """Thirty measurements of cells in their own units, from 1e-3 to 4e3 (Wolberg)."""
  x, malignant = load_breast_cancer(return_X_y=True)
  order = np.random.default_rng(2).permutation(len(x))
  x, y = x[order].astype(np.float32), malignant[order, None].astype(np.float32)
  return _regression(
    "table as it comes", (x[:400], y[:400]), (x[400:], y[400:]), (32, 2000)
  )


class Regressor(nn.Module):
  """Two hidden layers of 64."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for _ in range(2):
      x = nn.relu(nn.Dense(64)(x))
    return nn.Dense(1)(x)


def _table(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Normal inputs; a smooth function of them with products of neighbours."""
  x = rng.normal(size=(rows, _INPUTS))
  y = np.sin(x[:, :8]).sum(1) + (x[:, 6:12] * x[:, 7:13]).sum(1) / 2
  y = (y - y.mean()) / y.std()
  return x.astype(np.float32), y[:, None].astype(np.float32)


def _regression(name: str, train: tuple, test: tuple, size: tuple[int, int]) -> Problem:
  """``size`` is the batch's and the training's length."""
  model = Regressor()
  x, y = map(jnp.asarray, test)

  def error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return squared_error(model.apply({"params": params}, x), y)

  return Problem(
    name,
    1e-3,
    "Keras' and Adam's own default",
    steps=size[1],
    init=lambda key: model.init(key, x[:1])["params"],
    loss=lambda params, batch, key: error(params, *batch),
    batch=drawn(train, size[0]),
    held_out=lambda params: error(params, x, y),
  )
