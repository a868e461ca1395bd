"""Training one network to look at it afterwards."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Carry, Optimizer, batch_rows, run_chunk

_CHUNK = 100


def fit(task: Task, learning_rate: float, seed: int = 0) -> Any:
  """The parameters after ``task.steps`` steps of SGD with momentum 0.9."""
  optimizer = Optimizer(
    functools.partial(optax.sgd, momentum=0.9), [{"learning_rate": learning_rate}]
  )
  key = jax.random.key(seed)
  variables = {"params": task.init(key)["params"]}
  state = optimizer.build(learning_rate).init(variables["params"])
  carry, data = Carry(variables, state), jax.tree.map(jnp.asarray, task.train)
  chunk = jax.jit(functools.partial(run_chunk, task, optimizer), donate_argnums=1)
  hyper = {"learning_rate": jnp.float32(learning_rate)}
  for done in tqdm(range(0, task.steps, _CHUNK), desc=f"training on {task.name}"):
    steps = min(_CHUNK, task.steps - done)
    order = jnp.asarray(batch_rows(task, seed, done, steps))
    numbers = jnp.arange(done, done + steps)
    carry, losses = chunk(hyper, carry, key, order, numbers, data)
    if not np.isfinite(losses).all():
      raise FloatingPointError(f"training on {task.name} diverged")
  return carry.variables["params"]
