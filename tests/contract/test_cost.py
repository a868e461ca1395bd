"""Guards on counted work of the compiled update; seconds are for the benchmarks."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax
from mbf_optax._linalg import products, sweep

PARAMS = {
  "wide": {"kernel": jnp.ones((599, 100)), "bias": jnp.ones(100)},
  "narrow": {"kernel": jnp.ones((20, 30))},
  "conv_0": {"kernel": jnp.ones((3, 3, 32, 64)), "bias": jnp.ones(64)},
  "conv_1": {"kernel": jnp.ones((3, 3, 64, 32))},
}


@pytest.fixture(scope="module", params=["shared", "low_rank"])
def compiled(request):
  partition = mbf_optax.flax_partition(
    block_limit=600, overrides=[("wide", request.param)]
  )
  tx = mbf_optax.scale_by_mbf(partition=partition)
  state = tx.init(PARAMS)
  update = jax.jit(tx.update, donate_argnums=(0, 1)).lower(PARAMS, state).compile()
  return update, state, mbf_optax.summarize(PARAMS, partition, "mbf"), partition


def inverse_flops(n):
  """What XLA counts in the inverse of one matrix of order ``n``."""
  compiled = jax.jit(sweep.spd_inverse).lower(jnp.ones((n, n))).compile()
  return compiled.cost_analysis()["flops"]


def test_operations_are_those_of_the_summary(compiled):
  """XLA counts both branches of a cond, and the body of a loop once.

  That body is a good part of a large inverse, whose operations have a test below.
  """
  update, state, summary, _ = compiled
  expected = sum(row.apply_flops + row.statistics_flops for row in summary.layers)
  counted = update.cost_analysis()["flops"]
  if isinstance(state.curvature["wide/kernel"], mbf_optax.BlockState):
    counted -= inverse_flops(sweep.padded_order(600))
  assert counted < 1.4 * expected


def test_a_large_inverse_leaves_out_a_quadrant():
  """What XLA counts is one panel: the product, and the columns times a matrix."""
  for n, share in ((640, 0.85), (1024, 0.8)):  # 640 has five panels: uneven halves
    width = sweep.panel_width(n)
    product, columns = 2 * n**2 * width, 2 * n * width**2
    assert inverse_flops(n) < share * product + columns, n


@pytest.mark.parametrize(
  ("function", "shape"),
  [(products.symmetric_product, (2500, 840)), (products.gram, (840, 2500))],
)
def test_a_large_symmetric_product_computes_little_more_than_half(function, shape):
  compiled = jax.jit(function).lower(jnp.ones(shape)).compile()
  assert compiled.cost_analysis()["flops"] < 0.64 * 2 * 2500**2 * 840


def test_statistics_and_inverses_are_updated_in_place(compiled):
  """A step that refreshes nothing must not copy what it does not touch."""
  update, state, _, _ = compiled
  copied = set(re.findall(r"= f32\[([\d,]*)\]\S* copy\(", update.as_text()))
  for path in ("conv_0/kernel", "conv_1/kernel", "narrow/kernel"):
    for leaf in jax.tree.leaves(state.curvature[path]):
      assert ",".join(map(str, leaf.shape)) not in copied, path
  memory = update.memory_analysis()
  assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


def test_parts_of_joined_inverses_share_a_kernel(compiled):
  """A slice at a constant offset is a kernel of its own, and a deep net has many."""
  text = compiled[0].as_text()
  assert re.search(r"= f32\[45,2048\]\S* dynamic-slice\(", text)
  assert not re.search(r"= f32\[45,2048\]\S* slice\(", text)


def test_temporary_memory_is_bounded_by_the_state(compiled):
  update, _, summary, _ = compiled
  assert update.memory_analysis().temp_size_in_bytes < 1.4 * summary.state_bytes


def test_metrics_cost_little_beside_the_update(compiled):
  update, state, _, partition = compiled

  def metrics(state, gradients, updates):
    return mbf_optax.metrics(state, gradients, updates, partition)

  watched = jax.jit(metrics).lower(state, PARAMS, PARAMS).compile()
  for cost, share in (("flops", 0.15), ("bytes accessed", 0.25)):
    assert watched.cost_analysis()[cost] < share * update.cost_analysis()[cost], cost


@pytest.mark.promotes
def test_one_compilation_serves_every_step():
  traces = 0
  tx = mbf_optax.mbf(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.1)

  @jax.jit
  def update(gradients, state, params):
    nonlocal traces
    traces += 1
    return tx.update(gradients, state, params)

  state = tx.init(PARAMS)
  for _ in range(4):
    _, state = update(PARAMS, state, PARAMS)
  assert traces == 1


def test_small_blocks_hold_eleven_floats_a_weight():
  """Momentum, and the triangles of statistics and inverse: 1 + 45 / 9 + 45 / 9."""
  params = {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)}
  summary = mbf_optax.summarize(params, optimizer="mbf")
  assert summary.layers[0].state_bytes == 11 * 4 * 9 * 64 * 64


def test_mbf_adam_holds_six_or_twelve():
  """Adam's two moments, and matrices of channels or the triangles of kernels.

  Channels are 576 inputs in five parts of 116, and 64 outputs.
  """
  params = {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)}
  weights = 9 * 64 * 64
  by_channel = mbf_optax.summarize(params, optimizer="mbf_adam").layers[0]
  assert by_channel.state_bytes == 4 * (2 * weights + 2 * (5 * 116**2 + 64**2))
  by_kernel = mbf_optax.flax_partition(overrides=[("kernel", "conv")])
  summary = mbf_optax.summarize(params, by_kernel, optimizer="mbf_adam")
  assert summary.layers[0].state_bytes == 12 * 4 * weights


@pytest.mark.parametrize(("channels", "floats"), [(16, 11.2), (64, 5.9), (256, 3.1)])
def test_a_convolution_holds_what_readme_and_docs_say(channels, floats):
  params = {"kernel": jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)}
  held = mbf_optax.summarize(params).floats_per_parameter
  assert held == pytest.approx(floats, abs=0.05)
