"""Training one network to look at it afterwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.paper.steps import batch_rows
from benchmarks.paper.tasks import Batch, Task


def fit(task: Task, learning_rate: float, seed: int = 0) -> Any:
  """The parameters after ``task.steps`` steps of SGD with momentum 0.9.

  Every step is a call of its own: inside of a ``scan``, XLA runs the gradients of
  convolutions over ten times more slowly on a CPU.
  """
  tx = optax.sgd(learning_rate, momentum=0.9)
  key = jax.random.key(seed)
  params = task.init(key)["params"]
  state, data = tx.init(params), jax.tree.map(jnp.asarray, task.train)

  @jax.jit
  def step(params: Any, state: optax.OptState, batch: Batch) -> tuple:
    def loss(params: Any) -> jax.Array:
      return task.loss({"params": params}, batch, key)[0]

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  for done in tqdm(range(task.steps), desc=f"training on {task.name}"):
    rows = batch_rows(task, seed, done, 1)[0]
    batch = jax.tree.map(lambda array, rows=rows: array[rows], data)
    params, state, value = step(params, state, batch)
  if not np.isfinite(value):
    raise FloatingPointError(f"training on {task.name} diverged")
  return params
