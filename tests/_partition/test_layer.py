"""What a layer may say of its axes, and what fits a weight array and its bias."""

import re

import jax.numpy as jnp
import pytest

import mbf_optax
from mbf_optax._partition.layer import Bias, Layer, read

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}


def open_to(*channel_axes):
  return Layer((0,), "auto", joins_bias=False, channel_axes=channel_axes)


def refused(*parts):
  """A ``ValueError`` whose message has all the parts, in this order."""
  return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, parts)))


@pytest.mark.parametrize("name", ["rank", "full_limit", "block_limit"])
@pytest.mark.parametrize("value", [0, 16.5, "8"])
@pytest.mark.mistyped
def test_counts_are_positive(name, value):
  with refused(f"{name} is {value!r}", "at least 1"):
    Layer((0,), "low_rank", **{name: value})


def test_unknown_estimator():
  with refused("'diagonal'", "'full'", "'two_sided'", "'low_rank'", "'rms'"):
    Layer((0,), "diagonal")


def test_axes_that_do_not_go_with_the_estimator():
  with refused("'rms'", "element by element", "(0,)"):
    Layer((0,), "rms")
  with refused("'full'", "block_axes"):
    Layer()
  with refused("channel axes (2,)", "'shared'", "block_axes"):
    Layer((0, 1), "shared", joins_bias=False, channel_axes=(2,))
  with refused("channel axes (2,)", "joins_bias=False"):
    Layer((0, 1), "auto", channel_axes=(2,))


@pytest.mark.parametrize("name", ["block_axes", "stack_axes", "channel_axes"])
def test_axes_that_are_no_tuple(name):
  with refused(f"{name} is 1", "(1,)"):
    Layer(**{"block_axes": (0,), name: 1})
  with refused(f"{name} is ('a',)", "whole numbers"):
    Layer(**{"block_axes": (0,), name: "a"})


@pytest.mark.parametrize("shape", [(0, 3), (0, 0)])
@pytest.mark.parametrize("estimator", ["full", "shared", "low_rank"])
def test_blocks_without_elements(shape, estimator):
  with refused("'kernel'", str(shape), "no element", "(0,)", "rms"):
    read("kernel", shape, Layer((0,), estimator))


@pytest.mark.parametrize(
  ("layer", "parts"),
  [
    (Layer((2,)), ("(3, 2)", "(2,)", "-2 to 1")),
    (Layer((-3,)), ("(3, 2)", "(-3,)", "-2 to 1")),
    (Layer((0, 0)), ("(3, 2)", "(0, 0)", "distinct")),
    (Layer((0,), stack_axes=(0,)), ("(3, 2)", "(0,)", "stacked", "(0,)")),
    (Layer((0,), stack_axes=(-2,)), ("(3, 2)", "(0,)", "stacked", "(-2,)")),
    (Layer((0,), stack_axes=(2,)), ("(3, 2)", "stacked", "(2,)", "-2 to 1")),
    (open_to(2), ("(3, 2)", "channel", "(2,)", "-2 to 1")),
    (open_to(-2), ("block", "(0,)", "channel", "(-2,)")),
    (Layer((1,)), ("Dense_0/bias", "(2,)", "(3,)", "joins_bias=False")),
  ],
  ids=str,
)
def test_layer_that_does_not_fit(layer, parts):
  partition = mbf_optax.flax_partition(overrides=[("kernel", layer)])
  with pytest.raises(ValueError, match="Dense_0/kernel") as caught:
    mbf_optax.scale_by_mbf(partition=partition).init(PARAMS)
  for part in parts:
    assert part in str(caught.value)


def test_axes_are_made_non_negative_and_sorted():
  reading = read("kernel", (2, 3, 4, 5), Layer((-1, 1), stack_axes=(-4,)))
  assert (reading.layer.block_axes, reading.layer.stack_axes) == ((1, 3), (0,))
  assert (reading.counted_axes, reading.batch_shape) == ((2,), (2, 4))
  assert (reading.blocks, reading.blocks_per_layer, reading.block_size) == (8, 4, 15)
  assert reading.stack_shape == (2,)
  layer = Layer((0,), "auto", (1,), joins_bias=False, channel_axes=(-1, -2))
  assert read("kernel", (3, 2, 4, 5), layer).layer.channel_axes == (2, 3)


@pytest.mark.parametrize(
  ("shape", "stack", "bias", "axes"),
  [
    ((2, 3, 4), (0,), (2, 4), (0, 2)),
    ((3, 2, 4), (1,), (2, 4), (1, 2)),
    ((3, 2, 4), (1,), (4, 2), (2, 1)),
    ((3, 4, 2), (2,), (2, 4), (2, 1)),
    ((3, 4), (), (1, 4), (1,)),
  ],
)
def test_a_bias_joins_in_any_order_of_its_axes(shape, stack, bias, axes):
  block = shape.index(3)
  reading = read("kernel", shape, Layer((block,), stack_axes=stack), Bias("b", bias))
  assert reading.bias_axes == axes
  assert reading.block_size == 4
  assert reading.paths == ("kernel", "b")
  assert reading.elements == 24 + 8 if len(shape) == 3 else 16


def test_descriptions():
  reading = read("Dense_0/kernel", (2, 784, 10), Layer((1,), "shared", (0,)))
  assert reading.label == "shared x2"
  assert (
    reading.describe() == "Dense_0/kernel (2, 784, 10): shared x2, 20 blocks of 784"
  )
  one = read("", (3, 1), Layer((0,), "full"), Bias("b", (1,)))
  assert one.describe() == "(the array) (3, 1): full+bias, 1 block of 4"


def readings():
  return list(mbf_optax.flax_partition()(PARAMS))


def wrong_partitions():
  (whole,) = readings()
  elsewhere = whole._replace(path="Dense_9/kernel")
  alone = mbf_optax.Reading("Dense_0/bias", None, (2,), mbf_optax.Layer((), "rms"))
  return {
    "twice": ([whole, whole], "'Dense_0/kernel'", "twice"),
    "bias twice": ([whole, alone], "'Dense_0/bias'", "twice"),
    "left out": ([whole._replace(bias_path=None)], "'Dense_0/bias'", "out", "rms"),
    "nothing": ([], "'Dense_0/bias'", "out"),
    "elsewhere": ([elsewhere], "'Dense_9/kernel'", "no leaf"),
  }


@pytest.mark.parametrize("case", wrong_partitions())
def test_custom_partition_that_does_not_cover_the_parameters_once(case):
  found, *parts = wrong_partitions()[case]
  with refused(*parts):
    mbf_optax.scale_by_mbf(partition=lambda params: found).init(PARAMS)
