"""What an instruction to warm up holds, and that an update obeys it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from mbf_optax._optimizers.instruction import WarmStart


def test_it_passes_through_jit_as_a_tree_of_one_number_or_none():
  weight = jax.jit(lambda instruction: instruction)(WarmStart(jnp.array(0.25)))
  assert isinstance(weight, WarmStart)
  assert weight.average == 0.25
  assert jax.tree.leaves(WarmStart(None)) == []
  assert jax.tree.structure(weight) != jax.tree.structure(WarmStart(None))


def test_it_has_to_say_what_to_do():
  """A refresh that nobody asked for would end a warm start early."""
  with pytest.raises(TypeError, match="average"):
    WarmStart()


def test_a_weight_keeps_that_much_of_the_statistics_and_none_makes_inverses_alone():
  params = {"kernel": jnp.array([[1.0], [2.0]])}
  partition = mbf_optax.flax_partition("full")
  tx = mbf_optax.scale_by_mbf(damping=1.0, relative_damping=False, partition=partition)

  @jax.jit
  def update(state, instruction):
    return tx.update(params, state, params, warm_start=instruction)

  direction, once = update(tx.init(params), WarmStart(jnp.array(0.75)))
  assert not direction["kernel"].any()
  statistics = once.curvature["kernel"].statistics[:, 0]
  np.testing.assert_allclose(statistics, [0.25, 0.5, 1.0], rtol=1e-6)  # g g^T / 4
  _, done = update(once, WarmStart(None))
  inverse = np.linalg.inv([[2.0, 2.0], [2.0, 5.0]])  # g g^T + I
  found = done.curvature["kernel"].inverse[:, 0]
  np.testing.assert_allclose(found, inverse[np.triu_indices(2)], rtol=1e-5)
