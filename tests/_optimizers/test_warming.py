"""Warm starts: the mean over a pass, and where in a state it arrives."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._linalg.statistics import Spectrum
from mbf_optax._optimizers.shrinkage import shrunk
from tests.contract import common

SMALL = {"a": {"kernel": (2, 5), "bias": (5,)}, "b": {"kernel": (2, 5), "bias": (5,)}}
SMALL_PARAMS = common.random_tree(20, SMALL)
SMALL_GRADIENTS = [common.random_tree(seed, SMALL) for seed in (21, 22, 23)]
DIRECTION = functools.partial(common.make, "scale_by_mbf")


@functools.cache
def warm_by_hand():
  tx = DIRECTION()
  return mbf_optax.warm_start(tx, tx.init(SMALL_PARAMS), SMALL_PARAMS, SMALL_GRADIENTS)


WARM = {
  "chain": lambda: optax.chain(optax.scale(1.0), DIRECTION(), optax.trace(0.9)),
  "mbf": lambda: common.make("mbf"),
  "inject_hyperparams": lambda: optax.inject_hyperparams(mbf_optax.mbf)(
    **common.HYPERPARAMETERS["mbf"]
  ),
  "partition": lambda: optax.partition({"all": DIRECTION()}, "all"),
  "graft": lambda: common.make("graft"),
}


@pytest.mark.parametrize("wrapper", WARM)
def test_warm_start_reaches_the_inside(wrapper):
  tx = WARM[wrapper]()
  state = tx.init(SMALL_PARAMS)
  warm = mbf_optax.warm_start(tx, state, SMALL_PARAMS, SMALL_GRADIENTS)
  chex.assert_trees_all_equal_shapes_and_dtypes(warm, state)
  inner = common.our_state(warm)
  chex.assert_trees_all_close(inner, warm_by_hand(), rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_equal(common.others(warm), common.others(state))


def test_warm_start_is_the_mean_of_the_outer_products():
  warm = warm_by_hand()
  neurons = [
    jnp.concatenate([g["a"]["kernel"], g["a"]["bias"][None]]) for g in SMALL_GRADIENTS
  ]
  matrices = np.mean([jnp.einsum("ib,jb->bij", n, n) for n in neurons], axis=0)
  rows, columns = np.triu_indices(3)
  statistics = np.asarray(warm.curvature["a/kernel"].statistics)
  np.testing.assert_allclose(statistics, matrices[:, rows, columns].T, rtol=1e-5)
  inverses = np.linalg.inv(matrices + 0.3 * np.eye(3))
  inverse = np.asarray(warm.curvature["a/kernel"].inverse)
  np.testing.assert_allclose(
    inverse, inverses[:, rows, columns].T, rtol=1e-4, atol=1e-5
  )
  assert warm.bias_correction == 1
  assert warm.count == 0


def test_warm_start_of_mbf_adam_leaves_adam_alone():
  """Its matrices are as filled as those of a long run, at today's persistence."""
  partition = mbf_optax.flax_partition("shared")
  tx = common.make("mbf_adam", partition=partition)
  state = tx.init(SMALL_PARAMS)
  for gradients in SMALL_GRADIENTS[:2]:  # so that Adam's state is not all zeros
    _, state = jax.jit(tx.update)(gradients, state, SMALL_PARAMS)
  warm = mbf_optax.warm_start(tx, state, SMALL_PARAMS, iter(SMALL_GRADIENTS))
  chex.assert_trees_all_equal(common.others(warm), common.others(state))
  before, after = common.our_state(state), common.our_state(warm)
  chex.assert_trees_all_equal(
    (after.adam, after.foretold), (before.adam, before.foretold)
  )
  assert after.bias_correction == 1
  layer = after.curvature["a/kernel"]
  neurons = [
    np.concatenate([g["a"]["kernel"], g["a"]["bias"][None]]) for g in SMALL_GRADIENTS
  ]
  statistics = np.mean([n @ n.T / 5 for n in neurons], axis=0)
  np.testing.assert_allclose(layer.statistics[0], statistics, rtol=1e-5)
  # Of three elements, which five neurons share.
  spectrum = Spectrum(jnp.float32(np.trace(statistics) / 3), np.asarray(3), 5, ())
  scale, shift = shrunk(jnp.float32(1), 0.7, 0.1)(spectrum)
  eigenvalues, vectors = np.linalg.eigh(scale * statistics + shift * np.eye(3))
  metrics = mbf_optax.metrics(warm, partition=partition)["a/kernel"]
  powers = eigenvalues ** -(0.9 * float(metrics.exponent))
  np.testing.assert_allclose(
    layer.inverse[0], vectors @ np.diag(powers) @ vectors.T, rtol=1e-2, atol=1e-2
  )


def test_warm_start_through_masked():
  tx = optax.masked(DIRECTION(), {"a": True, "b": False})
  state = tx.init(SMALL_PARAMS)
  warm = mbf_optax.warm_start(tx, state, SMALL_PARAMS, SMALL_GRADIENTS)
  expected = warm_by_hand().curvature["a/kernel"]
  chex.assert_trees_all_close(
    warm.inner_state.curvature, {"a/kernel": expected}, rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize("optimizer", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_what_has_no_parameters_stays_as_it_is(optimizer):
  tx = optax.partition({"a": optimizer(0.1), "b": optimizer(0.2)}, "a")
  state = tx.init(SMALL_PARAMS)
  warm = mbf_optax.warm_start(tx, state, SMALL_PARAMS, SMALL_GRADIENTS[:1])
  chex.assert_trees_all_equal(warm.inner_states["b"], state.inner_states["b"])


def refused(*parts):
  return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, parts)))


def test_no_gradients():
  tx = mbf_optax.mbf(0.1)
  with refused("warm_start", "empty", "at least one"):
    mbf_optax.warm_start(tx, tx.init(SMALL_PARAMS), SMALL_PARAMS, [])


def test_accumulated_gradients():
  inner = mbf_optax.mbf(0.1)
  tx = optax.MultiSteps(inner, 2)
  state = tx.init(SMALL_PARAMS)
  with refused("MultiSteps", "inner_opt_state=warm_start"):
    mbf_optax.warm_start(tx, state, SMALL_PARAMS, [SMALL_PARAMS])
  warm = mbf_optax.warm_start(
    inner, state.inner_opt_state, SMALL_PARAMS, [SMALL_PARAMS]
  )
  assert warm[0].bias_correction == 1


def test_no_state_of_ours():
  tx = optax.adam(0.1)
  with refused("warm_start", "no MbfState", "tx.init"):
    mbf_optax.warm_start(tx, tx.init(SMALL_PARAMS), SMALL_PARAMS, [SMALL_PARAMS])
