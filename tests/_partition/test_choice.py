"""What the optimizers make of layers that leave the estimator to them."""

import pytest

from mbf_optax._partition.choice import LEAST_OUTPUTS, for_mbf, for_mbf_adam
from mbf_optax._partition.layer import Bias, Layer, read


def auto(shape, bias=None, **options):
  bias = bias and Bias("bias", bias)
  return read("kernel", shape, Layer((0,), "auto", **options), bias)


def estimators(readings):
  return {reading.path: reading.layer.estimator for reading in readings}


@pytest.mark.parametrize(("inputs", "estimator"), [(32, "full"), (33, "shared")])
def test_mbf_keeps_a_matrix_for_every_small_block(inputs, estimator):
  assert estimators(for_mbf(auto((inputs, 3)))) == {"kernel": estimator}
  assert estimators(for_mbf(auto((3, 3), full_limit=2))) == {"kernel": "shared"}


@pytest.mark.parametrize("outputs", [LEAST_OUTPUTS - 1, LEAST_OUTPUTS])
def test_mbf_adam_reads_heads_of_few_outputs_as_adam_does(outputs):
  readings = for_mbf_adam(auto((7, outputs), (outputs,)))
  if outputs < LEAST_OUTPUTS:
    assert estimators(readings) == {"kernel": "rms", "bias": "rms"}
    assert [reading.shape for reading in readings] == [(7, outputs), (outputs,)]
    assert not any(reading.bias_path for reading in readings)
  else:
    assert estimators(readings) == {"kernel": "two_sided"}
    assert readings[0].bias_path == "bias"


def test_mbf_adam_reads_blocks_of_one_element_as_adam_does():
  assert estimators(for_mbf_adam(auto((1, 9)))) == {"kernel": "rms"}
  assert estimators(for_mbf_adam(auto((1, 9), (9,)))) == {"kernel": "two_sided"}


def convolution(*shape, bias=(), **options):
  layer = Layer((0, 1), "auto", joins_bias=False, channel_axes=(2,), **options)
  return read("kernel", shape, layer, bias and Bias("bias", bias))


@pytest.mark.parametrize(("offsets", "estimator"), [(6, "full"), (7, "shared")])
def test_mbf_has_a_block_for_every_kernel_of_a_convolution(offsets, estimator):
  (chosen,) = for_mbf(convolution(6, offsets, 4, 50))
  layer = chosen.layer
  assert (layer.block_axes, layer.estimator, layer.channel_axes) == (
    (0, 1),
    estimator,
    (),
  )
  assert (chosen.blocks, chosen.block_size) == (200, 6 * offsets)


def test_mbf_adam_has_a_block_for_every_output_channel_of_a_convolution():
  (chosen,) = for_mbf_adam(convolution(3, 3, 4, 50))
  assert chosen.layer == Layer((0, 1, 2), "two_sided", (), False, block_limit=128)
  assert (chosen.blocks, chosen.block_size) == (50, 36)


@pytest.mark.parametrize("shape", [(3, 3, 1, LEAST_OUTPUTS - 1), (3, 3, 29, 8)])
def test_mbf_adam_has_kernels_where_output_channels_fill_no_matrix(shape):
  """Few of them, or 261 inputs for each of 8, where 32 are the most."""
  (chosen,) = for_mbf_adam(convolution(*shape))
  assert chosen == for_mbf(convolution(*shape, block_limit=128))[0]
  (wider,) = for_mbf_adam(convolution(3, 3, 28, 8))
  assert wider.layer.estimator == "two_sided"


def test_limits_of_what_a_convolution_becomes():
  (lowered,) = for_mbf_adam(convolution(3, 3, 4, 50, block_limit=16))
  assert lowered.layer.block_limit == 16
  (bounded,) = for_mbf_adam(convolution(3, 3, 4, 5))
  assert bounded.layer.block_limit == 17 * 5
  (bounded,) = for_mbf(convolution(7, 7, 1, 2))
  assert bounded.layer.block_limit == 17 * 2
  (asked,) = for_mbf(convolution(7, 7, 1, 2, block_limit=1025))
  assert asked.layer.block_limit == 1025


def test_outputs_are_those_of_one_layer_of_a_stack():
  stack = read("kernel", (3, 2, 4), Layer((0,), "auto", stack_axes=(1,)))
  assert estimators(for_mbf_adam(stack)) == {"kernel": "rms"}


@pytest.mark.parametrize("choose", [for_mbf, for_mbf_adam])
@pytest.mark.parametrize("estimator", ["full", "shared"])
def test_what_is_asked_for_is_kept(choose, estimator):
  reading = read("kernel", (40, 2), Layer((0,), estimator))
  assert choose(reading) == [reading]


def test_what_an_optimizer_does_not_have():
  two_sided = read("kernel", (4, 6), Layer((0,), "two_sided"))
  with pytest.raises(ValueError, match=r"'kernel' .* mbf does not have; use"):
    for_mbf(two_sided)
  low_rank = read("kernel", (4, 6), Layer((0,), "low_rank"))
  with pytest.raises(ValueError, match=r"'kernel' .* mbf_adam does not\s*have; use"):
    for_mbf_adam(low_rank)
