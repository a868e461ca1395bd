"""The printed summary, and its bytes against the state that is really allocated."""

import jax
import jax.numpy as jnp
import pytest

import mbf_optax
from tests import trees


def shapes(dtype):
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    trees.SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_are_those_of_the_state(dtype):
  summary = mbf_optax.summarize(shapes(dtype), trees.PARTITION)
  params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes(dtype))
  state = mbf_optax.scale_by_mbf(partition=trees.PARTITION).init(params)
  assert summary.state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  scalars = 3 * 4  # the counter and the two weights belong to no layer
  assert sum(row.state_bytes for row in summary.layers) == summary.state_bytes - scalars


def test_table_has_a_row_a_layer():
  summary = mbf_optax.summarize(shapes(jnp.float32), trees.PARTITION)
  lines = str(summary).splitlines()
  assert len(lines) == len(summary.layers) + 4
  assert any(
    "stack/dense_low_rank/kernel" in line and "low_rank+bias x2" in line
    for line in lines
  )
  assert lines[-1].startswith(f"{len(summary.layers)} layers")


def test_operations_are_amortised():
  summary = mbf_optax.summarize({"kernel": jax.ShapeDtypeStruct((100, 10), "float32")})
  (row,) = summary.layers
  assert (row.apply_flops, row.statistics_flops) == (2 * 100**2 * 10,) * 2
  assert row.inverse_flops == 2 * 100**3
  each, rarely = summary.flops_per_step(1, 1), summary.flops_per_step(10, 100)
  assert each == row.apply_flops + row.statistics_flops + row.inverse_flops
  assert rarely == row.apply_flops + row.statistics_flops / 10 + row.inverse_flops / 100


def test_nothing_is_allocated_for_models_that_do_not_fit():
  huge = {"kernel": jax.ShapeDtypeStruct((10**6, 10**6), "float32")}
  assert mbf_optax.summarize(huge).state_bytes > 10**12


def test_empty_tree():
  assert "0 layers" in str(mbf_optax.summarize({}))
