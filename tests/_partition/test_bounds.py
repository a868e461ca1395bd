"""No reading by default holds much; what is asked for may, up to a point."""

import math

import hypothesis
import jax
import pytest
from hypothesis import strategies as st

import mbf_optax
from mbf_optax._estimators.table import estimator_of
from mbf_optax._partition.bounds import FLOATS, check_size, floats
from mbf_optax._partition.choice import for_mbf, for_mbf_adam
from tests._partition.shapes import array, read

sizes = st.sampled_from([1, 2, 3, 5, 7, 10, 14, 16, 31, 64, 127, 768, 2048, 50_000])
kernels = st.lists(sizes, min_size=2, max_size=5).map(tuple)


def held(readings):
  """Floats of the states that the estimators really make."""
  return sum(
    sum(leaf.size for leaf in jax.tree.leaves(state))
    for reading in readings
    for state in [
      jax.eval_shape(lambda r=reading: estimator_of(r).init("float32")),
    ]
  )


@hypothesis.settings(max_examples=200)
@hypothesis.given(kernels, st.booleans(), st.sampled_from(["Conv_0", "a", "Dense_0"]))
def test_no_default_reading_holds_more_than_40_floats_a_parameter(shape, bias, module):
  layer = {"kernel": array(*shape)}
  if bias:
    layer["bias"] = array(shape[-1])
  for reading in read({module: layer}).values():
    for chosen in (*for_mbf(reading), *for_mbf_adam(reading)):
      assert floats(chosen) <= FLOATS * chosen.elements


@pytest.mark.parametrize("shape", [(16, 16, 3, 768), (4096, 32, 128), (512, 12, 2048)])
def test_readings_that_exploded(shape):
  summary = mbf_optax.summarize({"x": {"kernel": array(*shape)}})
  assert summary.floats_per_parameter < FLOATS


@pytest.mark.parametrize(
  ("layer", "shape"),
  [
    (mbf_optax.Layer((0, 1), "full"), (3, 3, 8, 4)),
    (mbf_optax.Layer((0,), "full"), (100, 7)),
    (mbf_optax.Layer((0,), "shared", block_limit=30), (100, 7)),
    (mbf_optax.Layer((1,), "shared", (0,)), (5, 100, 7)),
    (mbf_optax.Layer((0,), "two_sided", block_limit=64), (100, 70)),
    (mbf_optax.Layer((0,), "low_rank", rank=3), (100, 7)),
  ],
)
def test_floats_are_those_of_the_state(layer, shape):
  overrides = [("kernel", layer)]
  (reading,) = read({"kernel": array(*shape)}, overrides=overrides).values()
  moments = 2 * math.prod(shape)
  assert floats(reading) - moments == pytest.approx(held([reading]), rel=0.01)


def test_a_block_limit_is_lowered_for_few_outputs_alone():
  def limit(shape, **options):
    (reading,) = read({"kernel": array(*shape)}, **options).values()
    return reading.layer.block_limit

  assert limit((4096, 4096)) == 1024
  assert limit((4096, 4096), block_limit=64) == 64
  assert limit((4096, 5)) < 128
  assert limit((5, 4096)) < 128
  assert limit((4096, 10), block_limit=2000) == 2000  # asked for


def test_what_is_asked_for_is_refused_past_a_gigabyte():
  wide = {"kernel": array(8192, 1024)}
  for tx in (mbf_optax.mbf, mbf_optax.mbf_adam):
    explicit = tx(1e-3, partition=mbf_optax.flax_partition("full"))
    with pytest.raises(ValueError, match=r"'?kernel.* would hold 54\d\.\d GB, 16,386"):
      jax.eval_shape(explicit.init, wide)
  small = {"kernel": array(512, 16)}
  readings = list(read(small, dense="full").values())
  assert floats(readings[0]) > FLOATS * readings[0].elements
  check_size(readings)  # a few megabytes
