"""Fine-tuning with low-rank adapters."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.swap import data
from benchmarks.swap.images import cross_entropy
from benchmarks.swap.problem import Problem, drawn

_RANK, _BEFORE = 8, 400  # of the adapters, and steps before they are added


def low_rank() -> Problem:
  """A network for digits learns them turned by a quarter and inverted, NNX.

  All but the adapters is frozen. The network is trained in the usual way first, by
  Adam for every optimizer.
  """
  split = data.digits()
  network = Network(nnx.Rngs(0))
  _train(network, split.train)
  turned = [(1 - np.rot90(x, axes=(1, 2)), y) for x, y in (split.train, split.test)]
  x_test, y_test = map(jnp.asarray, turned[1])
  adapted = Adapted(network, nnx.Rngs(0))
  graph, _, frozen = nnx.split(adapted, nnx.LoRAParam, ...)

  def init(key: jax.Array) -> Any:
    return nnx.state(Adapted(network, nnx.Rngs(key)), nnx.LoRAParam)

  def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return cross_entropy(nnx.merge(graph, params, frozen)(x), y)

  return Problem(
    "low-rank adapters",
    1e-3,
    "usual for adapters of small models; 2e-4 is for large ones",
    steps=2000,
    init=init,
    loss=lambda params, batch, key: loss(params, *batch),
    batch=drawn(turned[0], 64),
    held_out=lambda params: loss(params, x_test, y_test),
  )


class Network(nnx.Module):
  """A perceptron of three hidden layers."""

  def __init__(self, rngs: nnx.Rngs):
    widths = (64, 128, 128, 128, 10)
    self.layers = nnx.List(
      [nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(widths)]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    *hidden, last = self.layers
    x = x.reshape(len(x), -1)
    for layer in hidden:
      x = nnx.relu(layer(x))
    return last(x)


class Adapted(nnx.Module):
  """The network with an adapter beside every layer."""

  def __init__(self, network: Network, rngs: nnx.Rngs):
    self.layers = nnx.List(
      [
        nnx.LoRA(
          layer.in_features, _RANK, layer.out_features, base_module=layer, rngs=rngs
        )
        for layer in network.layers
      ]
    )

  __call__ = Network.__call__


def _train(network: Network, examples: data.Examples) -> None:
  """Trains the network in place by Adam."""
  batch, tx = drawn(examples, 64), optax.adam(1e-3)
  graph, params = nnx.split(network, nnx.Param)

  def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return cross_entropy(nnx.merge(graph, params)(x), y)

  def step(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
    params, state = carry
    gradient = jax.grad(loss)(params, *batch(number, jax.random.key(0)))
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(carry: tuple) -> tuple:
    return jax.lax.scan(step, carry, jnp.arange(_BEFORE))[0]

  nnx.update(network, run((params, tx.init(params)))[0])
