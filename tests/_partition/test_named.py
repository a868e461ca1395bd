"""How named partitions choose estimators, and how often they look at a tree."""

import math
import re
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax
from mbf_optax._partition.choice import for_mbf
from tests._partition.shapes import array, read


def reading_of(shape, **options):
  params = {"Conv_0": {"kernel": array(*shape)}}
  (reading,) = mbf_optax.flax_partition(**options)(params)
  return reading


def layer_of(shape, **options):
  return reading_of(shape, **options).layer


@pytest.mark.parametrize(
  ("spatial", "estimator"),
  [
    ((3, 3), "full"),
    ((6, 6), "full"),
    ((36,), "full"),
    ((37,), "shared"),
    ((7, 7), "shared"),
    ((13, 15), "shared"),
    ((5, 5, 5), "shared"),
  ],
)
def test_a_convolution_shares_a_matrix_past_36_offsets(spatial, estimator):
  axes = tuple(range(len(spatial)))
  for asked in ([], [("Conv_0", "conv")]):
    reading = reading_of((*spatial, 3, 64), overrides=asked)
    (chosen,) = for_mbf(reading)
    assert (chosen.layer.block_axes, chosen.layer.estimator) == (axes, estimator)
    assert not reading.layer.joins_bias
  assert reading.layer == chosen.layer


def test_a_convolution_may_span_its_channels():
  layer = layer_of((3, 3, 5, 64))
  assert (layer.estimator, layer.block_axes, layer.channel_axes) == (
    "auto",
    (0, 1),
    (2,),
  )
  for asked, axes in {"two_sided": (0, 1, 2), "shared": (0, 1), "conv": (0, 1)}.items():
    layer = layer_of((3, 3, 5, 64), overrides=[("Conv_0", asked)])
    assert (layer.block_axes, layer.channel_axes) == (axes, ())


@pytest.mark.parametrize("spatial", [(14, 14), (16, 16), (32, 32), (251,), (1, 1)])
def test_a_patch_embedding_is_a_dense_layer_over_whole_patches(spatial):
  params = {"Conv_0": {"kernel": array(*spatial, 3, 768), "bias": array(768)}}
  (reading,) = mbf_optax.flax_partition()(params)
  assert reading.layer.estimator == "auto"
  assert reading.layer.block_axes == tuple(range(len(spatial) + 1))
  assert reading.bias_path == "Conv_0/bias"
  assert (reading.blocks, reading.block_size) == (768, 3 * math.prod(spatial) + 1)


def test_an_override_reads_a_patch_embedding_as_a_convolution():
  overrides = [("Conv_0", "conv")]
  layer = layer_of((14, 14, 3, 768), overrides=overrides)
  assert (layer.estimator, layer.block_axes) == ("shared", (0, 1))


def test_a_bias_without_a_stack_does_not_share_that_of_its_weight():
  params = {"stem": {"kernel": array(5, 8, 16), "bias": array(16)}}
  kernel, bias = sorted(mbf_optax.flax_partition()(params), key=lambda r: -r.elements)
  assert kernel.stack_shape == (5,)
  assert bias.stack_shape == ()


def many(modules):
  layer = {"kernel": array(4, 4), "bias": array(4)}
  norm = {"scale": array(4), "bias": array(4)}
  return {f"block_{i}": {"dense": layer, "norm": norm} for i in range(modules)}


def calls(function, *args):
  """Number of Python and C functions that are called meanwhile."""
  count = 0

  def profile(frame, event, arg):
    nonlocal count
    count += event in ("call", "c_call")

  sys.setprofile(profile)
  try:
    function(*args)
  finally:
    sys.setprofile(None)
  return count


@pytest.mark.parametrize(
  "preset",
  [
    mbf_optax.flax_partition,
    mbf_optax.haiku_partition,
    mbf_optax.equinox_partition,
  ],
)
def test_the_work_is_linear_in_the_number_of_leaves(preset):
  small, large = many(100), many(400)
  assert calls(preset(), large) < 4.2 * calls(preset(), small)


def test_a_tree_is_read_once():
  partition = mbf_optax.flax_partition()
  readings = partition(many(3))
  assert partition(many(3)) is readings
  arrays = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), many(3))
  assert partition(arrays) is readings
  assert partition(many(4)) != readings
  halves = jax.tree.map(lambda leaf: array(*leaf.shape, dtype="bfloat16"), many(3))
  assert partition(halves) == readings
  assert mbf_optax.flax_partition() == partition  # whatever they have read
  assert hash(mbf_optax.flax_partition()) == hash(partition)


def test_few_trees_are_remembered():
  partition = mbf_optax.flax_partition()
  first = partition(many(1))
  for modules in range(2, 40):
    partition(many(modules))
  assert partition(many(1)) == first
  assert len(partition._seen) < 20


def test_who_says_what_a_layer_is():
  tree = {
    "Dense_0": {"kernel": array(4, 5), "bias": array(5)},
    "Dense_1": {"kernel": array(4, 5), "bias": array(5)},
    "norm": {"scale": array(4)},
    "wte": array(9, 4),
    "theta": array(4, 5, 6),
  }
  overrides = [("Dense_1", "shared")]
  why = {path: r.why for path, r in read(tree, overrides=overrides).items()}
  assert why == {
    "Dense_0/kernel": "recognised",
    "Dense_1/kernel": "asked",
    "norm/scale": "recognised",
    "wte": "recognised",
    "theta": "unknown",
  }
  layer = mbf_optax.Layer((0,), "shared")
  (reading,) = read({"theta": array(4, 5)}, overrides=[("theta", layer)]).values()
  assert reading.why == "asked"


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"Dense_0": "rms"}, "overrides is a dict; give a list of pairs"),
    ("Dense_0", "overrides is a str; give a list of pairs"),
    (["Dense_0"], "an override is 'Dense_0'; give"),
    ([("Dense_0", "rms", 3)], "an override is ('Dense_0'"),
    ([("Dense_0", "diagonal")], "asks for 'diagonal'"),
    ([("Dense_0[", "rms")], "is no regular expression"),
  ],
)
def test_overrides_of_a_wrong_kind(overrides, message):
  with pytest.raises((TypeError, ValueError), match=re.escape(message)):
    mbf_optax.flax_partition(overrides=overrides)


def test_a_preset_that_was_not_called():
  params = {"Dense_0": {"kernel": jnp.zeros((50, 50))}}
  with pytest.raises(TypeError, match="got a dict for dense") as caught:
    mbf_optax.haiku_partition(params)
  assert len(str(caught.value)) < 300  # without the arrays
  with pytest.raises(TypeError, match=r"call it: haiku_partition\(\)"):
    mbf_optax.mbf_adam(1e-3, partition=mbf_optax.haiku_partition)


def test_an_override_may_match_nothing_where_leaves_are_masked():
  """With ``optax.partition`` it matches in one group and not in the others."""
  partition = mbf_optax.flax_partition(overrides=[("Dense_0", "shared")])
  tree = {
    "Dense_0": {"kernel": array(4, 5)},
    "Dense_1": {"kernel": array(4, 5)},
  }
  tx = optax.partition(
    {name: mbf_optax.mbf(1e-3, partition=partition) for name in ("a", "b")},
    {"Dense_0": {"kernel": "a"}, "Dense_1": {"kernel": "b"}},
  )
  jax.eval_shape(tx.init, tree)
  with pytest.raises(ValueError, match="'Dense_0' matches no leaf"):
    partition({"Dense_1": tree["Dense_1"]})
