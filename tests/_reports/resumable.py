"""A training run that saves its progress and can be killed; see ``test_restored``.

Prints the loss of every step to the bit, and a digest of the last parameters. Started
again on the same folder it goes on from the last whole checkpoint.
"""

import hashlib
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import mbf_optax

STEPS, SAVE_EVERY = 24, 4
PERIODS = {"curvature_update_period": 2, "inverse_update_period": 3}
LAYERS = ("full", "shared", "other")


def partition(other):
  overrides = [("shared", "shared"), ("other", other)]
  return mbf_optax.flax_partition("full", rank=3, overrides=overrides)


OPTIMIZERS = {
  "mbf": mbf_optax.mbf(0.05, damping=0.1, partition=partition("low_rank"), **PERIODS),
  "mbf_adam": mbf_optax.mbf_adam(0.02, partition=partition("two_sided"), **PERIODS),
}


def initial():
  """Parameters and states of both optimizers."""
  rng = np.random.default_rng(0)
  kernels = {name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in LAYERS}
  params = {
    name: {"kernel": kernel, "bias": jnp.zeros(4)} for name, kernel in kernels.items()
  }
  return {
    name: {"params": params, "state": tx.init(params)}
    for name, tx in OPTIMIZERS.items()
  }


def loss_fn(params, x):
  y = x
  for name in LAYERS:
    y = jnp.tanh(y @ params[name]["kernel"] + params[name]["bias"])
  return jnp.mean(jnp.square(y - x))


@jax.jit
def step(training, x):
  """One step of each optimizer."""
  losses = {}
  for name, tx in OPTIMIZERS.items():
    params, state = training[name]["params"], training[name]["state"]
    losses[name], gradients = jax.value_and_grad(loss_fn)(params, x)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    training = {**training, name: {"params": params, "state": state}}
  return training, losses


def main(folder: str, killed_at: int = STEPS) -> None:
  """Trains to the end, or to a step at which it is killed."""
  options = ocp.CheckpointManagerOptions(
    save_interval_steps=SAVE_EVERY, max_to_keep=2, enable_async_checkpointing=True
  )
  training, first = initial(), 0
  with ocp.CheckpointManager(pathlib.Path(folder), options=options) as manager:
    if (latest := manager.latest_step()) is not None:
      like = jax.eval_shape(initial)
      training = manager.restore(latest, args=ocp.args.StandardRestore(like))
      first = latest + 1
    for k in range(first, STEPS):
      x = np.random.default_rng(k).normal(size=(8, 4)).astype(np.float32)
      training, losses = step(training, x)
      manager.save(k, args=ocp.args.StandardSave(training))
      bits = [float(losses[name]).hex() for name in OPTIMIZERS]
      print("step", k, *bits, flush=True)
      if k == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
  params = [training[name]["params"] for name in OPTIMIZERS]
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf).tobytes())
  print("params", digest.hexdigest(), flush=True)


if __name__ == "__main__":
  main(sys.argv[1], *map(int, sys.argv[2:]))
