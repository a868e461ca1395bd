"""KFAC's factors against kfac-jax.

kfac-jax 0.0.8 does not run on today's jax, so what it gave is kept in a file.
``python -m tests.benchmarks.test_kfac_jax`` writes that file anew, in an environment
with kfac-jax 0.0.8 and jax 0.7.2; there the last test compares it with kfac-jax itself.
"""

import functools
import importlib.metadata
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.baselines import capture
from tests.benchmarks import perceptron

RECORD = pathlib.Path(__file__).with_name("kfac_jax_factors.json")


def kfac_jax_factors():
  """Empirical Fisher factors of the perceptron's layers, as nested lists.

  In this mode kfac-jax divides the output gradients' factor by the number of examples
  once more than in its others, as it documents; that is undone here.
  """
  kfac_jax = pytest.importorskip("kfac_jax")
  params, x, labels = perceptron.problem()

  def loss(params, batch):
    x, labels = batch
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"])
    logits = hidden @ last["kernel"] + last["bias"]
    kfac_jax.register_softmax_cross_entropy_loss(logits, labels)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

  key = jax.random.key(0)
  arguments = (params, (x, labels))
  curvature = kfac_jax.BlockDiagonalCurvature(
    loss, default_estimation_mode="fisher_empirical"
  )
  state = curvature.init(key, arguments, None, None, cache_eigenvalues=False)
  state = curvature.update_curvature_matrix_estimate(
    state,
    ema_old=0.0,
    ema_new=1.0,
    identity_weight=0.0,
    batch_size=len(x),
    rng=key,
    func_args=arguments,
  )
  factors = {}
  for layer, block in zip(perceptron.SHAPES, state.blocks_states, strict=True):
    inputs, outputs = (factor.value for factor in block.factors)
    factors[layer] = [inputs.tolist(), (len(x) * outputs).tolist()]
  return factors


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for layer, factors in expected.items():
    for factor, value in zip(found[layer], factors, strict=True):
      np.testing.assert_allclose(factor, value, rtol=1e-4, atol=1e-6)


@pytest.mark.promotes
def test_factors_are_those_of_kfac_jax():
  loss = functools.partial(perceptron.loss, perceptron.Perceptron())
  captured = jax.jit(functools.partial(capture, loss))(*perceptron.problem())
  assert_same(captured.factors, json.loads(RECORD.read_text())["factors"])


@pytest.mark.promotes
@pytest.mark.skipif(
  jax.__version_info__ >= (0, 8), reason="jax is too new for kfac-jax"
)
def test_record_is_what_kfac_jax_gives():
  assert_same(kfac_jax_factors(), json.loads(RECORD.read_text())["factors"])


if __name__ == "__main__":
  versions = {name: importlib.metadata.version(name) for name in ("jax", "kfac-jax")}
  record = {"versions": versions, "factors": kfac_jax_factors()}
  RECORD.write_text(json.dumps(record, indent=1) + "\n")
