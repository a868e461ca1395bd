"""Every model of the swap is read from its loss as by the preset of its library."""

import jax
import pytest

import mbf_optax
from benchmarks.swap.problems import PROBLEMS

pytestmark = pytest.mark.promotes

# Where the computation says something else than the names. The graph network looks up
# the rows of its first kernel, as of an embedding, since its inputs are sparse; a gate
# of haiku's GRU adds one bias to two products, and the preset joins it to neither.
ELEMENTWISE = {"graph": "first/kernel"}
WITH_BIAS = {"gru": "gru/w_h"}


def blocks(readings):
  """Axes, estimator and bias of what is read in blocks, by path."""
  return {
    r.path: (r.layer.block_axes, r.layer.stack_axes, r.layer.estimator, r.bias_path)
    for r in readings
    if not r.layer.elementwise
  }


@pytest.mark.parametrize("name", PROBLEMS)
def test_traced_as_by_name(name):
  problem = PROBLEMS[name](None)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(problem.init, key)
  batch = jax.eval_shape(problem.batch, jax.ShapeDtypeStruct((), "int32"), key)
  traced = mbf_optax.traced_partition(problem.loss, params, batch, key)
  assert traced.unread == ()
  found = blocks(traced(params))
  expected = blocks((problem.partition or mbf_optax.flax_partition)()(params))
  if name in ELEMENTWISE:
    del expected[ELEMENTWISE[name]]
  if name in WITH_BIAS:
    axes, stack, estimator, _ = expected[WITH_BIAS[name]]
    expected[WITH_BIAS[name]] = axes, stack, estimator, "gru/b"
  assert found == expected
