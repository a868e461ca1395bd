"""Updates outside of jit: compiled once, and the same as inside."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._tree.paths import flatten

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.arange(5.0)}}
GRADIENTS = jax.tree.map(jnp.cos, PARAMS)
both = pytest.mark.parametrize("make", [mbf_optax.mbf, mbf_optax.mbf_adam])


def assert_equal(found, expected):
  for path, leaf in flatten(expected).items():
    np.testing.assert_array_equal(flatten(found)[path], leaf, err_msg=path)


def counted():
  """A partition, and a list with an entry for each of its calls."""
  calls = []

  def partition(params):
    calls.append(params)
    return mbf_optax.flax_partition()(params)

  return partition, calls


@both
def test_an_eager_update_is_traced_once(make):
  partition, calls = counted()
  tx = make(0.1, partition=partition)
  state = tx.init(PARAMS)
  before = len(calls)
  for gradients in (GRADIENTS, jax.tree.map(np.asarray, GRADIENTS), GRADIENTS):
    updates, state = tx.update(gradients, state, PARAMS)
  assert len(calls) == before + 1
  assert not isinstance(jax.tree.leaves(updates)[0], jax.core.Tracer)


@both
def test_an_eager_update_is_that_of_jit(make):
  tx = make(0.1)
  eager = compiled = tx.init(PARAMS)
  update = jax.jit(tx.update)
  other = jax.tree.map(jnp.sin, PARAMS)
  for source in (None, other, None):
    given = {"curvature_gradients": source, "value_fn": jnp.sum}
    mine, eager = tx.update(GRADIENTS, eager, PARAMS, **given)
    theirs, compiled = update(GRADIENTS, compiled, PARAMS, curvature_gradients=source)
    assert_equal(mine, theirs)
  assert_equal(eager, compiled)


@both
def test_injected_hyperparameters_are_traced_once(make):
  partition, calls = counted()
  injected = optax.inject_hyperparams(make, static_args=("partition",))
  tx = injected(0.1, damping=0.2, partition=partition)
  eager = compiled = tx.init(PARAMS)
  update = jax.jit(tx.update)
  found, eager = tx.update(GRADIENTS, eager, PARAMS)
  expected, compiled = update(GRADIENTS, compiled, PARAMS)
  before = len(calls)
  eager.hyperparams["damping"] = compiled.hyperparams["damping"] = jnp.float32(0.7)
  for _ in range(2):
    found, eager = tx.update(GRADIENTS, eager, PARAMS)
    expected, compiled = update(GRADIENTS, compiled, PARAMS)
  assert len(calls) == before
  for path, leaf in flatten(expected).items():
    np.testing.assert_allclose(flatten(found)[path], leaf, rtol=1e-5, err_msg=path)


@both
def test_transformations_that_differ_do_not_share_a_program(make):
  class Unhashable:
    __hash__ = None

    def __init__(self, dense):
      self.partition = mbf_optax.flax_partition(dense)

    def __call__(self, params):
      return self.partition(params)

  found = []
  for partition in (Unhashable("full"), Unhashable("shared")):
    for damping in (0.1, 0.3):
      tx = make(0.1, damping=damping, partition=partition)
      state = tx.init(PARAMS)
      for gradients in (GRADIENTS, PARAMS):
        updates, state = tx.update(gradients, state, PARAMS)
      found.append(np.asarray(updates["Dense_0"]["kernel"]))
  for first, second in itertools.combinations(found, 2):
    assert not np.allclose(first, second)


@pytest.mark.parametrize("dense", ["shared", "low_rank"])
def test_a_state_may_come_back_as_numpy(dense):
  tx = mbf_optax.mbf(0.1, partition=mbf_optax.flax_partition(dense))
  _, state = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
  expected, _ = tx.update(GRADIENTS, state, PARAMS)
  found, _ = tx.update(GRADIENTS, jax.tree.map(np.asarray, state), PARAMS)
  assert_equal(found, expected)


@both
def test_a_traced_hyperparameter_meets_plain_arrays(make):
  @jax.jit
  def updated(damping):
    tx = make(0.1, damping=damping)
    return tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)[0]

  plain = make(0.1, damping=0.5)
  expected, _ = plain.update(GRADIENTS, plain.init(PARAMS), PARAMS)
  found = updated(0.5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected
  )
