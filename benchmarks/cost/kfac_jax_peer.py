"""Prints what a step of kfac-jax costs on the autoencoder, relative to Adam's.

Its release needs an older jax, so this runs in an environment of its own, without
``mbf_optax``; Adam runs beside it there, and ratios to Adam are what to compare:

  pip install kfac-jax==0.0.8 jax==0.7.2 "flax<0.12.1" optax
  python -m benchmarks.cost.kfac_jax_peer
"""

import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
import optax

from benchmarks.cost.problems import Problem, autoencoder, training_step

PERIODS = ((1, 5), (1, 20), (10, 100))
_RATE = 1e-5  # small: a timing run must stay finite, not learn


def main(rounds: int = 3) -> None:
  """Times whole periods of each in turn."""
  problem = autoencoder()
  params = problem.model.init(jax.random.key(0), problem.inputs)["params"]
  steps = {"adam": _adam(problem, params), "muon": _muon(problem, params)}
  for periods in PERIODS:
    steps[f"kfac-jax {periods}"] = _kfac(problem, params, *periods)
  lengths = dict.fromkeys(steps, 20) | {f"kfac-jax {PERIODS[-1]}": 100}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds + 1):
    for name, run in steps.items():
      start = time.perf_counter()
      for _ in range(lengths[name]):
        carry = next(run)
      jax.block_until_ready(carry)
      seconds[name].append((time.perf_counter() - start) / lengths[name])
  means = {name: float(np.median(taken[1:])) for name, taken in seconds.items()}
  packages = ("jax", "kfac-jax", "optax")
  print({name: importlib.metadata.version(name) for name in packages})
  print(f"adam {1e3 * means['adam']:.1f} ms a step")
  for name, mean in means.items():
    print(f"{name:20s} {mean / means['adam']:.2f}")


def _first_order(
  tx: optax.GradientTransformation, problem: Problem, params: Any
) -> Iterator[Any]:
  step = jax.jit(training_step(problem, tx), donate_argnums=(0, 1, 2))
  carry = jax.tree.map(jnp.copy, params), {}, tx.init(params)
  while True:
    carry = step(*carry)
    yield carry


_adam: Callable[..., Iterator[Any]] = functools.partial(_first_order, optax.adam(_RATE))
_muon: Callable[..., Iterator[Any]] = functools.partial(
  _first_order, optax.contrib.muon(_RATE)
)


def _kfac(
  problem: Problem, params: Any, statistics: int, inverse: int
) -> Iterator[Any]:
  """Steps of kfac-jax with a fixed rate, momentum and damping."""

  def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    inputs, targets = batch
    outputs = problem.model.apply({"params": params}, inputs)
    kfac_jax.register_sigmoid_cross_entropy_loss(outputs, targets)
    return problem.loss(outputs, targets)

  optimizer = kfac_jax.Optimizer(
    jax.value_and_grad(loss),
    l2_reg=0.0,
    learning_rate_schedule=lambda _: _RATE,
    momentum_schedule=lambda _: 0.9,
    damping_schedule=lambda _: 1.0,
    num_burnin_steps=0,
    curvature_update_period=statistics,
    inverse_update_period=inverse,
  )
  key = jax.random.PRNGKey(0)
  batch = problem.inputs, problem.targets
  params = jax.tree.map(jnp.copy, params)
  state = optimizer.init(params, key, batch)
  for step in range(10**9):
    params, state, _ = optimizer.step(
      params, state, key, batch=batch, global_step_int=step
    )
    yield params


if __name__ == "__main__":
  main()
