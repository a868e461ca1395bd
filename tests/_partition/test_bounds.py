"""No reading by default holds much."""

import hypothesis
import pytest
from hypothesis import strategies as st

import mbf_optax
from mbf_optax._estimators.size import floats
from mbf_optax._estimators.table import estimator_of
from mbf_optax._partition.bounds import FLOATS
from mbf_optax._partition.choice import for_mbf, for_mbf_adam
from tests._partition.shapes import array, read

sizes = st.sampled_from([1, 2, 3, 5, 7, 10, 14, 16, 31, 64, 127, 768, 2048, 50_000])
kernels = st.lists(sizes, min_size=2, max_size=5).map(tuple)


@hypothesis.settings(max_examples=200)
@hypothesis.given(kernels, st.booleans(), st.sampled_from(["Conv_0", "a", "Dense_0"]))
def test_no_default_reading_holds_more_than_40_floats_a_parameter(shape, bias, module):
  layer = {"kernel": array(*shape)}
  if bias:
    layer["bias"] = array(shape[-1])
  for reading in read({module: layer}).values():
    for chosen in (*for_mbf(reading), *for_mbf_adam(reading)):
      assert floats(estimator_of(chosen)) <= FLOATS * chosen.elements


@pytest.mark.parametrize("shape", [(16, 16, 3, 768), (4096, 32, 128), (512, 12, 2048)])
def test_readings_that_exploded(shape):
  summary = mbf_optax.summarize({"x": {"kernel": array(*shape)}})
  assert summary.floats_per_parameter < FLOATS


def test_a_block_limit_is_lowered_for_few_outputs_alone():
  def limit(shape, **options):
    (reading,) = read({"kernel": array(*shape)}, **options).values()
    return reading.layer.block_limit

  assert limit((4096, 4096)) == 1024
  assert limit((4096, 4096), block_limit=64) == 64
  assert limit((4096, 5)) < 128
  assert limit((5, 4096)) < 128
  assert limit((4096, 10), block_limit=2000) == 2000  # asked for
