"""Kernels of three axes and more, with and without what stands beside them."""

import jax
import optax
import pytest

from tests._partition.shapes import array, axes, read

CONV = ((0,), (), False)  # a 1-d convolution
INPUT = ((0,), (), False)  # one axis of inputs
OUTPUT = ((0, 1), (), False)  # one axis of outputs
STACK = ((1,), (0,), False)  # independent layers, or nothing that is known
KERNELS = [
  ("Conv_0", (3, 16, 32), CONV),
  ("conv1d", (4, 16, 32), CONV),
  ("q_proj", (4096, 32, 128), INPUT),
  ("query", (4096, 32, 128), INPUT),
  ("to_v", (4096, 8, 128), INPUT),
  ("qkv", (512, 3, 8, 64), INPUT),
  ("qkv", (6, 512, 3, 8, 64), ((1,), (0,), False)),
  ("key", (6, 512, 8, 64), ((1,), (0,), False)),
  ("Dense_0", (6, 64, 64), STACK),
  ("experts", (8, 64, 256), STACK),
  ("gate_proj", (28, 1024, 3072), STACK),
  ("mlp", (12, 8, 512, 2048), ((2,), (0, 1), False)),
  ("DenseGeneral_0", (4096, 32, 128), STACK),
  ("projection", (4096, 32, 128), STACK),
  ("layer", (12, 8, 512, 2048), ((2,), (0, 1), False)),
  ("layer", (3, 3, 64, 64), ((0, 1), (), False)),
  ("layer", (1, 7, 64, 64), ((0, 1), (), False)),
  ("layer", (2, 2, 2, 64, 64), ((0, 1, 2), (), False)),
]


@pytest.mark.parametrize(("module", "shape", "expected"), KERNELS)
def test_a_kernel_alone(module, shape, expected):
  (reading,) = read({module: {"kernel": array(*shape)}}).values()
  assert axes(reading) == expected


def test_the_projection_that_gathers_heads_is_known_by_its_queries():
  tree = {
    "attention": {
      "q_proj": {"kernel": array(4096, 32, 128)},
      "o_proj": {"kernel": array(32, 128, 4096)},
    },
    "other": {"o_proj": {"kernel": array(32, 128, 4096)}},
  }
  readings = read(tree)
  assert axes(readings["attention/o_proj/kernel"]) == OUTPUT
  assert axes(readings["other/o_proj/kernel"]) == STACK


def test_projections_with_two_axes_may_be_stacked():
  """Queries and outputs share their first size: no projection of several axes."""
  tree = {
    "q_proj": {"kernel": array(28, 1024, 2048)},
    "k_proj": {"kernel": array(28, 1024, 512)},
    "o_proj": {"kernel": array(28, 2048, 1024)},
  }
  assert {axes(reading) for reading in read(tree).values()} == {STACK}


MODEL = {
  "embed": {"embedding": array(1000, 64)},
  "patches": {"kernel": array(16, 16, 3, 64), "bias": array(64)},
  "Conv_0": {"kernel": array(3, 3, 4, 8), "bias": array(8)},
  "Conv_1": {"kernel": array(5, 4, 8), "bias": array(8)},
  "layers": {
    "norm": {"scale": array(6, 64), "bias": array(6, 64)},
    "attention": {
      "query": {"kernel": array(6, 64, 2, 32), "bias": array(6, 2, 32)},
      "out": {"kernel": array(6, 2, 32, 64), "bias": array(6, 64)},
    },
    "Dense_0": {"kernel": array(6, 64, 256), "bias": array(6, 256)},
    "Dense_1": {"kernel": array(6, 256, 64), "bias": array(6, 64)},
    "Conv_0": {"kernel": array(6, 3, 64, 64), "bias": array(6, 64)},
  },
  "moe": {"experts": {"kernel": array(8, 64, 64), "bias": array(8, 64)}},
  "head": {"kernel": array(64, 10), "bias": array(10)},
}


def test_what_a_label_tree_hides_changes_no_axes():
  kernels = jax.tree_util.tree_map_with_path(
    lambda keys, leaf: leaf if keys[-1].key == "kernel" else optax.MaskedNode(), MODEL
  )
  whole, alone = read(MODEL), read(kernels)
  assert set(alone) == {path for path in whole if path.endswith("kernel")}
  for path, reading in alone.items():
    assert axes(reading)[:2] == axes(whole[path])[:2], path
    assert reading.bias_path is None


@pytest.mark.parametrize(
  ("bias", "expected"),
  [((48,), (0, 1, 2)), ((96,), (0, 1, 3)), (None, (0, 1, 2))],
)
def test_a_transposed_pointwise_convolution(bias, expected):
  """Flax stores it ``(1, 1, out, in)``, which its bias tells."""
  layer = {"kernel": array(1, 1, 96, 48)}
  if bias is not None:
    layer["bias"] = array(*bias)
  (reading,) = read({"ConvTranspose_0": layer}).values()
  assert axes(reading) == (expected, (), bias is not None)


def test_stacks_inside_stacks():
  layer = {"kernel": array(4, 3, 8, 16), "bias": array(4, 3, 16)}
  tree = {"members": {"ln": {"scale": array(4, 3, 8)}, "Dense_0": layer}}
  assert axes(read(tree)["members/Dense_0/kernel"]) == ((2,), (0, 1), True)


def test_a_stack_on_the_second_axis_whose_first_axis_is_common_too():
  """Only there do weight and bias fit without it."""
  norm = {"scale": array(64, 6), "bias": array(64, 6)}
  dense = {"kernel": array(64, 6, 64), "bias": array(64, 6)}
  tree = {"layers": {"LayerNorm_0": norm, "Dense_0": dense}}
  reading = read(tree)["layers/Dense_0/kernel"]
  assert axes(reading) == ((0,), (1,), True)
  assert reading.bias_axes == (2, 1)
