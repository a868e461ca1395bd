"""``mbf_adam`` with a rate of its own for matrices, as muon is run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks import baselines
from benchmarks.models import Transformer


@pytest.mark.promotes
def test_matrices_and_others_move_at_their_own_rates():
  model = Transformer(11, 8, 1, heads=2)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  params = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape), shapes["params"]
  )
  tx = baselines.mbf_adam_two_rates(0.1, 0.01, 0.9, 0.5, 0.2, head="Dense_0")
  updates, _ = tx.update(params, tx.init(params), params)
  matrices = mbf_optax.mbf_adam(0.1, b2=0.9, weight_decay=0.5, nesterov=True)
  block = {"Dense_0": {"kernel": params["TransformerBlock_0"]["Dense_0"]["kernel"]}}
  expected, _ = matrices.update(block, matrices.init(block), block)
  found = updates["TransformerBlock_0"]["Dense_0"]["kernel"]
  np.testing.assert_allclose(found, expected["Dense_0"]["kernel"], rtol=1e-4, atol=1e-6)
  nadam = optax.nadamw(0.01, b2=0.9, weight_decay=0.2)
  others = {
    "head": (params["Dense_0"]["kernel"], updates["Dense_0"]["kernel"]),
    "embedding": (params["Embed_0"]["embedding"], updates["Embed_0"]["embedding"]),
  }
  for leaf, update in others.values():
    theirs, _ = nadam.update(leaf, nadam.init(leaf), leaf)
    np.testing.assert_allclose(update, theirs, rtol=1e-5)
