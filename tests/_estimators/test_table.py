"""The table is the only list of the estimators: a new one needs a class and a line."""

import dataclasses
from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._estimators import axes, table
from mbf_optax._estimators.estimator import Blocks, Operations
from mbf_optax._linalg.statistics import Statistics
from mbf_optax._partition.blocks import joined
from mbf_optax._partition.layer import EstimatorName, Layer, Reading, read


def test_every_estimator_that_a_layer_may_name_has_a_class():
  """``"auto"`` is a choice that the optimizers make before."""
  assert set(table._CLASSES) == set(get_args(EstimatorName)) - {"auto"}
  for name in table._CLASSES:
    block_axes = () if name in ("rms", "inverse") else (0,)
    reading = read("kernel", (3, 2), Layer(block_axes, name))
    assert table.estimator_of(reading).reading == reading


class OneNumberState(NamedTuple):
  statistics: jax.Array
  inverse: jax.Array


@dataclasses.dataclass(frozen=True)
class OneNumber(Blocks):
  """A toy: a layer's matrix is its mean square times the identity, of order 1."""

  rounds_inverse = False

  def init(self, dtype):
    return OneNumberState(jnp.zeros((1, 1), dtype), jnp.ones((1, 1), dtype))

  def entry(self, gradient):
    return jnp.mean(jnp.square(joined(gradient))).reshape(1, 1)

  def accumulate(self, state, entry, ema):
    return state._replace(statistics=ema * state.statistics + (1 - ema) * entry)

  def statistics(self, state):
    order = np.ones((), int)
    return [Statistics(state.statistics, False, order, self.reading.blocks, ())]

  def with_inverses(self, state, results):
    return state._replace(inverse=results[0].values)

  def precondition(self, state, vectors, regularize):
    del regularize
    return [state.inverse[0, 0] * piece for piece in vectors]

  def condition(self, state, correction):
    del correction
    return jnp.ones_like(state.inverse[0, 0])

  def spread(self, state):
    return jnp.ones_like(state.inverse[0, 0])

  def shardings(self, state, sharding):
    del state
    return OneNumberState(*[axes.placed(sharding.mesh)] * 2)

  def operations(self):
    size = self.reading.elements
    return Operations(size, 2 * size, 1)


@pytest.fixture
def partition(monkeypatch):
  """Reads every kernel as the toy, which takes a known name in the table."""
  monkeypatch.setitem(table._CLASSES, "shared", OneNumber)

  def readings(params):
    found = mbf_optax.flax_partition("shared")(params)
    assert all(isinstance(reading, Reading) for reading in found)
    return found

  return readings


PARAMS = {"kernel": jnp.zeros((3, 5)), "bias": jnp.zeros(5)}
GRADIENTS = {
  "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32),
  "bias": jnp.asarray(np.random.default_rng(1).normal(size=5), jnp.float32),
}


def test_a_new_estimator_runs_through_mbf(partition):
  tx = mbf_optax.scale_by_mbf(0.3, momentum=0.0, partition=partition)
  updates, state = jax.jit(tx.update)(GRADIENTS, tx.init(PARAMS))
  flat = np.concatenate([np.ravel(g) for g in GRADIENTS.values()])
  scale = 1 / (np.mean(flat**2) + 0.3)
  expected = jax.tree.map(lambda g: scale * g, GRADIENTS)
  chex.assert_trees_all_close(updates, expected, rtol=1e-5)
  assert isinstance(state.curvature["kernel"], OneNumberState)


def test_a_new_estimator_runs_through_mbf_adam(partition):
  """A multiple of the identity leaves the momentum's direction, at Adam's length."""
  tx = mbf_optax.scale_by_mbf_adam(exponent=1.0, partition=partition)
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for sign in (1.0, -1.0):
    updates, state = update(
      jax.tree.map(lambda g, sign=sign: sign * g, GRADIENTS), state
    )
  m = jax.tree.map(lambda m: m / (1 - 0.9**2), state.adam.mu)
  a = jax.tree.map(
    lambda m, v: m / (jnp.sqrt(v / (1 - 0.999**2)) + 1e-8), m, state.adam.nu
  )
  for name in PARAMS:
    assert np.all(np.sign(updates[name]) == np.sign(m[name]))
  d, lengths = (
    np.concatenate([tree["kernel"], tree["bias"][None]]) for tree in (updates, a)
  )
  np.testing.assert_allclose(
    np.linalg.norm(d, axis=0), np.linalg.norm(lengths, axis=0), rtol=1e-4
  )


def test_a_new_estimator_is_counted_watched_and_checked(partition):
  summary = mbf_optax.summarize(PARAMS, partition, optimizer="mbf")
  assert summary.layers[0].apply_flops == 20
  tx = mbf_optax.mbf(0.1, partition=partition)
  state = tx.init(PARAMS)
  mbf_optax.check_state(tx, state, PARAMS)
  assert list(mbf_optax.metrics(state, partition=partition)) == ["kernel"]
  warm = mbf_optax.warm_start(tx, state, PARAMS, [GRADIENTS])
  flat = np.concatenate([np.ravel(g) for g in GRADIENTS.values()])
  np.testing.assert_allclose(
    warm[0].curvature["kernel"].statistics, [[np.mean(flat**2)]], rtol=1e-5
  )
