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
