"""Timed steps are of the kinds that they are counted as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax
from benchmarks.cost import compilation
from benchmarks.cost.measure import _at_count, _shares
from benchmarks.cost.optimizers import Timed
from mbf_optax._tree.paths import flatten

PERIODS = {"curvature_update_period": 3, "inverse_update_period": 6}
PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.arange(5.0)}}


def matrices(state):
  """Statistics and inverses of the layer's inputs, in any state."""
  (ours,) = (node for node in state if hasattr(node, "curvature"))
  layer = ours.curvature["Dense_0/kernel"]
  layer = getattr(layer, "inputs", layer)
  return layer.statistics, layer.inverse


@pytest.mark.promotes
def test_stages_of_a_compilation_are_timed_apart():
  params = jax.eval_shape(lambda: PARAMS)
  found = {
    name: compilation.compilation(make(), params)
    for name, make in compilation.OPTIMIZERS.items()
  }
  for cost in found.values():
    assert min(cost) > 0
    assert cost.total == pytest.approx(sum(cost[:3]))
  assert found["mbf_adam"].operations > found["adam"].operations
  rows = compilation.table("small", found).splitlines()
  assert [row.split()[0] for row in rows] == ["small", "adam", "mbf", "mbf_adam"]
  assert rows[1].split()[5] == "1.0"


@pytest.mark.promotes
@pytest.mark.parametrize(
  ("network", "layers"), [("transformer", 12), ("resnet110", 108)]
)
def test_networks_to_compile_for_are_deep(network, layers):
  names = {path.split("/")[0] for path in flatten(compilation.parameters(network))}
  blocks = [name for name in names if "Block" in name]
  assert len(blocks) * (1 if network == "transformer" else 2) == layers


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["mbf", "mbf_adam"])
def test_every_kind_of_step_does_what_it_is_timed_for(name):
  timed = Timed(getattr(mbf_optax, name)(0.1, **PERIODS), 3, 6)
  update = jax.jit(timed.tx.update)
  state = timed.tx.init(PARAMS)
  for scale in (1.0, 0.3, -2.0):
    _, state = update(jax.tree.map(lambda p, s=scale: s * p, PARAMS), state)
  shares = _shares(timed)
  assert sum(shares.values()) == pytest.approx(1)
  other = jax.tree.map(jnp.cos, PARAMS)  # a multiple would leave the inverse as it is
  found = {}
  for count, share in shares.items():
    before = _at_count(state, count)
    _, after = update(other, before)
    pairs = zip(matrices(before), matrices(after), strict=True)
    found[tuple(not np.array_equal(*pair) for pair in pairs)] = share
  assert found == pytest.approx(
    {(True, True): 1 / 6, (True, False): 1 / 6, (False, False): 2 / 3}
  )
