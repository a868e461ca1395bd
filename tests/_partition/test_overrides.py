"""Overrides by path, which of them reaches a leaf, and limits asked for."""

import pytest

from mbf_optax._partition.layer import Layer
from mbf_optax._partition.overrides import Choices, Rule


def choices(*overrides, dense="auto", rank=16, full_limit=32, block_limit=1024):
  return Choices.checked(dense, rank, full_limit, block_limit, overrides)


def test_the_first_override_found_anywhere_in_a_path_wins():
  given = choices(("out", "rms"), ("a/kernel$", "shared"), ("kernel", "low_rank"))
  assert given.asked("a/kernel", None) == "shared"
  assert given.asked("a/kernel/b", None) == "low_rank"
  assert given.asked("layout/kernel", None) == "rms"
  assert given.asked("a/scale", None) is None


def test_an_override_of_a_weight_does_not_reach_its_bias():
  given = choices(("Dense_0", "shared"), ("bias", "rms"))
  assert given.asked("Dense_0/bias", None) == "shared"
  assert given.asked("Dense_0/bias", "Dense_0/kernel") == "rms"
  assert given.asked("Dense_1/bias", "Dense_1/kernel") == "rms"
  assert choices(("Dense_0", "rms")).asked("Dense_0/bias", "Dense_0/kernel") is None


def test_every_override_has_to_match_a_path_where_there_are_any():
  given = choices(("Dense", "shared"), (r"Conv_\d", "rms"))
  given.check_matches(iter(["Dense_0/kernel", "Conv_1/kernel"]))
  given.check_matches([])
  with pytest.raises(ValueError, match="matches no leaf; the paths are Dense_0, C_1"):
    given.check_matches(iter(["Dense_0", "C_1"]))


@pytest.mark.parametrize("name", ["rank", "full_limit", "block_limit"])
def test_a_limit_is_at_least_one(name):
  assert getattr(choices(**{name: 1}), name) == 1
  with pytest.raises(ValueError, match=f"the partition's {name} is 0; it must"):
    choices(**{name: 0})


def test_what_an_array_may_be_read_as():
  for reading in ("auto", "full", "shared", "two_sided", "low_rank"):
    assert choices(dense=reading).dense == reading
    assert Rule.parse("a", reading).layer == reading
  for reading in ("conv", "dense", "rms", Layer((0,))):
    assert Rule.parse("a", reading).layer == reading
  for reading in ("conv", "dense", "rms", "inverse"):
    with pytest.raises(ValueError, match=f"got dense='{reading}'; use one of 'auto',"):
      choices(dense=reading)
  with pytest.raises(ValueError, match="asks for 'inverse'; use a Layer or one of"):
    Rule.parse("a", "inverse")


def test_a_layer_takes_the_rank_and_the_limits_asked_for():
  limits = {"rank": 6, "full_limit": 7, "block_limit": 8}
  given = choices(**limits)
  dense = given.neurons((0,), (), (99, 99), "shared")
  assert dense == Layer((0,), "shared", **limits)
  kernels = given.convolution((0,), (1,), (), (3, 99, 99), None)
  assert kernels == Layer((0,), "auto", joins_bias=False, channel_axes=(1,), **limits)


def test_kernels_without_an_axis_of_channels_are_blocks_for_every_optimizer():
  layer = choices().convolution((0, 1), (), (), (6, 6, 9), None)
  assert (layer.estimator, layer.block_axes) == ("full", (0, 1))


@pytest.mark.parametrize(("asked", "kept"), [(1024, 34), (1025, 1025)])
def test_a_limit_is_lowered_for_few_outputs_unless_it_is_wider_than_the_default(
  asked, kept
):
  """Past 34 rows two matrices hold more than 34 floats for each of 2 outputs a row."""
  layer = choices(block_limit=asked).neurons((0,), (), (5000, 2), "shared")
  assert layer.block_limit == kept


def test_overrides_are_pairs_of_a_regular_expression():
  for given in ("Dense_0", {"Dense_0": "rms"}):
    with pytest.raises(TypeError, match="give a list of pairs"):
      Choices.checked("auto", 16, 32, 1024, given)
  with pytest.raises(ValueError, match="is no regular expression"):
    choices(("Dense_0[", "rms"))
