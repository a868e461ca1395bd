"""From uses that are written down by hand to how parameters are read."""

import pytest

from mbf_optax._partition.layer import Bias, Layer
from mbf_optax._partition.overrides import Choices
from mbf_optax._partition.plans import Planner
from mbf_optax._partition.uses import Addition, Record, Recorder, Use
from tests._partition.shapes import array

PRODUCT = Use("product", (0,))
CONVOLUTION = Use("convolution", (2,), (0, 1))
RMS = Layer(estimator="rms")


def planner(leaves, uses=(), additions=(), overrides=(), **seen):
  record = Recorder(dict(enumerate(uses)), additions=list(additions), **seen)
  choices = Choices.checked("auto", 16, 32, 1024, overrides)
  return Planner.of(leaves, record, choices)


def used(use, path="w", equation="x @ w", with_data=True):
  return Record(path, use, equation, with_data)


def read(shape, *uses, asked=None, **seen):
  """The plan of one parameter."""
  overrides = () if asked is None else [("w", asked)]
  return planner({"w": array(*shape)}, uses, overrides=overrides, **seen).plan("w")


@pytest.mark.parametrize(
  ("shape", "use", "axes", "estimator"),
  [
    ((40, 50), PRODUCT, (0,), "auto"),
    ((3, 3, 40, 50), CONVOLUTION, (0, 1), "auto"),
    ((6, 6, 40, 50), CONVOLUTION, (0, 1), "auto"),
    ((1, 37, 40, 50), CONVOLUTION, (0, 1), "auto"),
    ((14, 14, 3, 768), Use("patches", (2,), (0, 1)), (0, 1, 2), "auto"),
    ((2, 2, 40, 50), Use("upsampling", (2,), (0, 1)), (2,), "auto"),
  ],
)
def test_blocks_are_those_of_the_use(shape, use, axes, estimator):
  plan = read(shape, used(use))
  assert (plan.layer.block_axes, plan.layer.estimator) == (axes, estimator)
  assert (plan.why, plan.reason) == ("recognised", "")
  assert not plan.layer.joins_bias  # there is none


def test_an_override_takes_another_estimator_or_other_axes():
  shape = (3, 3, 40, 50)
  assert read(shape, used(CONVOLUTION), asked="shared").layer.estimator == "shared"
  dense = read(shape, used(CONVOLUTION), asked="dense").layer
  assert (dense.block_axes, dense.estimator) == ((0, 1, 2), "auto")
  patches = read(shape, used(Use("patches", (2,), (0, 1))), asked="conv").layer
  assert (patches.block_axes, patches.estimator) == ((0, 1), "full")
  unused = read(shape, asked="dense").layer
  assert unused.block_axes == (0, 1, 2)
  assert read(shape, used(CONVOLUTION), asked="rms").why == "asked"
  layer = Layer((1,), "full")
  assert read(shape, used(CONVOLUTION), asked=layer).layer == layer
  with pytest.raises(ValueError, match="as 'conv', which needs spatial, input and"):
    read((40, 50), used(PRODUCT), asked="conv")
  with pytest.raises(ValueError, match="as 'dense', which needs input and output"):
    read((40,), asked="dense")


def test_what_is_read_element_by_element_and_why():
  shape = (40, 50)
  other = used(Use("product", (1,)), equation="y @ w.T")
  two = read(shape, used(PRODUCT), other)
  divided = read(shape, used(Use("divided"), equation="a strange product"))
  reasons = {
    read(shape).reason: "the loss does not use it",
    read(shape, lost={"w": "sort"}).reason: "it could not be followed through sort",
    two.reason: "it is used in two ways, x @ w and y @ w.T",
    divided.reason: "one of its axes has two roles in a strange product",
  }
  assert list(reasons) == list(reasons.values())
  assert (divided.layer, divided.why) == (RMS, "unknown")
  table = read(shape, used(Use("elementwise")))
  assert (table.layer, table.why) == (RMS, "recognised")
  assert (read((40,)).layer, read((40,)).why) == (RMS, "recognised")
  assert read((0, 50), used(PRODUCT)).layer == RMS
  asked = read(shape, used(PRODUCT), other, asked="auto")
  assert asked.layer.block_axes == (0,)  # the first product


def test_uses_that_are_alike_withdrawn_or_of_parameters_alone_do_not_count():
  shape, transposed = (40, 50), Use("product", (1,))
  assert read(shape, used(PRODUCT), used(PRODUCT)).layer.block_axes == (0,)
  alone = used(transposed, with_data=False)
  assert read(shape, alone, used(PRODUCT)).layer.block_axes == (0,)
  assert read(shape, alone).layer.block_axes == (1,)
  withdrawn = read(shape, used(Use("elementwise")), used(transposed), withdrawn={0})
  assert withdrawn.layer.block_axes == (1,)


def test_stacks_are_those_of_the_use_and_of_layers_alike():
  """Of other axes than the blocks' own, and of this parameter alone."""
  stacks = {("w", 2), ("w", 1), ("other", 3)}
  plan = read((2, 5, 6, 7), used(Use("product", (2,), (), (0,))), stacks=stacks)
  assert plan.layer.stack_axes == (0, 1)
  assert plan.layer.block_axes == (2,)


LEAVES = {"w": array(2, 40, 50), "b": array(2, 50), "c": array(50), "z": array(2, 50)}
STACKED = Use("product", (1,), (), (0,))
ADDED = [
  Addition("z", "w", ((0, 0), (1, 2)), 9),
  Addition("b", "w", ((0, 0), (1, 2)), 4),
]


def test_the_first_bias_joins_and_others_stand_alone():
  found = planner(LEAVES, [used(STACKED)], ADDED)
  plan = found.plan("w")
  assert plan.bias == Bias("b", (2, 50), (0, 2))
  assert plan.layer.joins_bias
  assert found.plan("b").layer == found.plan("z").layer == RMS


def test_a_bias_without_the_stacked_axis_joins_a_stack_of_one_alone():
  """``(50,)`` for two layers is the bias of neither."""
  addition = [Addition("c", "w", ((0, 2),), 1)]
  assert planner(LEAVES, [used(STACKED)], addition).plan("w").bias is None
  one = LEAVES | {"w": array(1, 40, 50)}
  bias = planner(one, [used(STACKED)], addition).plan("w").bias
  assert bias == Bias("c", (50,), (2, 0))


def test_a_bias_that_is_used_or_added_to_two_products_is_none():
  uses = [used(STACKED), used(Use("elementwise"), "b")]
  plan = planner(LEAVES, uses, ADDED[1:]).plan("w")
  assert (plan.bias, plan.layer.joins_bias) == (None, False)
  twice = [*ADDED[1:], Addition("b", "v", ((0, 0), (1, 2)), 5)]
  leaves = LEAVES | {"v": LEAVES["w"]}
  both = [used(STACKED), used(STACKED, "v")]
  assert planner(leaves, both, twice).plan("w").bias is None
  again = [*ADDED[1:], ADDED[1]._replace(step=7)]
  assert planner(LEAVES, uses[:1], again).plan("w").bias is not None


@pytest.mark.parametrize("asked", ["rms", Layer((1,), "full")])
def test_an_override_of_a_bias_keeps_it_out_of_the_blocks(asked):
  found = planner(LEAVES, [used(STACKED)], ADDED[1:], [("b", asked)])
  assert found.plan("w").bias is None
  assert found.plan("b").why == "asked"


@pytest.mark.parametrize("inputs", [4, 1])
def test_a_bias_beside_kernels_is_a_layer_of_its_own_along_their_stack(inputs):
  leaves = {"w": array(5, 3, 3, inputs, 6), "b": array(6, 5)}
  kernels = Use("convolution", (3,), (1, 2), (0,))
  addition = [Addition("b", "w", ((0, 4), (1, 0)), 1)]
  plan = planner(leaves, [used(kernels)], addition).plan("b")
  assert plan.layer == Layer(estimator="inverse", stack_axes=(1,))
  elementwise = planner(leaves, [used(kernels)], addition, [("w", "rms")])
  assert elementwise.plan("b").layer == RMS


def test_complex_arrays_have_no_blocks():
  leaves = {"w": array(40, 50, dtype="complex64"), "v": array(40, 50)}
  leaves["b"] = array(50, dtype="complex64")
  uses = [used(PRODUCT), used(PRODUCT, "v")]
  found = planner(leaves, uses, [Addition("b", "v", ((0, 1),), 1)])
  assert found.plan("w").layer == RMS
  assert found.plan("v").bias is None
  assert found.plan("b").layer == RMS
  with pytest.raises(ValueError, match="blocks to 'w', which is complex"):
    planner(leaves, uses, overrides=[("w", Layer((0,)))]).plan("w")


def test_an_override_of_both_leaves_the_bias_in_its_blocks():
  """Its axes may be negative."""
  layer = Layer((-2,), "full", (-3,))
  leaves = {"x/w": LEAVES["w"], "x/b": LEAVES["b"]}
  addition = [Addition("x/b", "x/w", ((1, 2),), 4)]
  found = planner(leaves, [used(STACKED, "x/w")], addition, [("x", layer)])
  assert found.plan("x/w").bias == Bias("x/b", (2, 50), (2, 0))
  assert found.plan("x/b").why == "recognised"
