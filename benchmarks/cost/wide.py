"""Trains a layer of 8192 inputs in the default configuration.

Memory is predicted before anything is allocated, then compared with what is there.

python -m benchmarks.cost.wide --steps 20
"""

import argparse
import resource
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import mbf_optax
from benchmarks.paper.report import table


class Wide(nn.Module):
  """A perceptron whose hidden layer has ``width`` units."""

  width: int
  outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(x)))


def main() -> None:
  """Predicts, trains with ``adam``, ``mbf_adam`` and ``mbf``, and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--width", type=int, default=8192)
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--steps", type=int, default=20)
  options = parser.parse_args()
  model = Wide(options.width, 32)
  batches = _batches(options.batch, options.steps)
  params = jax.eval_shape(model.init, jax.random.key(0), batches[0][0])["params"]
  summary = mbf_optax.summarize(params)
  print(summary, flush=True)
  contenders = {
    "adam": optax.adam(1e-3),
    "mbf_adam": mbf_optax.mbf_adam(1e-3),
    "mbf": mbf_optax.mbf(1e-4, damping=1e-2),
  }
  rows = [_train(name, tx, model, batches) for name, tx in contenders.items()]
  titles = ("optimizer", "first loss", "last loss", "seconds a step", "state MB")
  print(table(titles, rows))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(
    f"predicted for mbf_adam: {summary.state_bytes / 1e6:.1f} MB; process: {peak:.0f} MB"
  )


def _batches(size: int, steps: int) -> list[tuple[jax.Array, jax.Array]]:
  """Inputs and the outputs of a fixed random network with noise."""
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(64, 128)) / 8, rng.normal(size=(128, 32)) / 11
  inputs = rng.normal(size=(steps, size, 64))
  targets = np.maximum(inputs @ first, 0) @ second
  targets += 0.01 * rng.normal(size=targets.shape)
  return [
    (jnp.float32(x), jnp.float32(y)) for x, y in zip(inputs, targets, strict=True)
  ]


def _train(
  name: str,
  tx: optax.GradientTransformation,
  model: nn.Module,
  batches: list[tuple[jax.Array, jax.Array]],
) -> tuple[str, ...]:
  """One training; a row of the table."""
  params = model.init(jax.random.key(0), batches[0][0])["params"]
  state = tx.init(params)

  def step(params, state, x, y):  # type: ignore[no-untyped-def]
    def loss(params):  # type: ignore[no-untyped-def]
      return jnp.square(model.apply({"params": params}, x) - y).sum(-1).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *batches[0])
  compiled = compiled.compile()
  losses, start = [], time.perf_counter()
  for batch in tqdm(batches, desc=name):
    params, state, value = compiled(params, state, *batch)
    losses.append(float(value))
  seconds = (time.perf_counter() - start) / len(batches)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
  return name, f"{losses[0]:.3f}", f"{losses[-1]:.3f}", f"{seconds:.2f}", f"{size:.1f}"


if __name__ == "__main__":
  main()
