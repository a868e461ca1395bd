"""Matrices and kernels that no name gives away."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._partition.blocks import to_blocks
from mbf_optax._tree import paths
from tests._partition.shapes import array, axes, read

W, B = array(64, 32), array(32)
DENSE = ((0,), (), True)
PAIRS = [
  ({"w": W, "b": B}, {"w": "b"}),
  ({"kernelish": W, "anything": B}, {"kernelish": "anything"}),
  ([(W, B), (array(32, 5), array(5))], {"0/0": "0/1", "1/0": "1/1"}),
  ([W, B, array(32, 5), array(5)], {"0": "1", "2": "3"}),
  (
    {"W1": W, "b1": B, "W2": array(32, 32), "b2": B},
    {"W1": "b1", "W2": "b2"},
  ),
  ({"Wq": W, "bq": B, "Wk": W, "bk": B}, {"Wq": "bq", "Wk": "bk"}),
  (
    {"fc1_w": W, "fc1_b": B, "fc2_w": W, "fc2_b": B},
    {"fc1_w": "fc1_b", "fc2_w": "fc2_b"},
  ),
  (
    {"weights_in": W, "biases_in": B, "weights_out": W, "biases_out": B},
    {"weights_in": "biases_in", "weights_out": "biases_out"},
  ),
  ({"matrix": W, "row": array(1, 32)}, {"matrix": "row"}),
]


@pytest.mark.parametrize(("tree", "expected"), PAIRS)
@pytest.mark.parametrize(
  "preset", [mbf_optax.flax_partition, mbf_optax.haiku_partition]
)
def test_a_matrix_and_a_vector_of_its_outputs(preset, tree, expected):
  readings = read(tree, preset)
  assert {path: r.bias_path for path, r in readings.items()} == expected
  assert {axes(reading) for reading in readings.values()} == {DENSE}


def test_a_vector_of_the_first_axis_alone():
  """``(out, in)``; square matrices have the layout of the preset's library."""
  for preset, square in (
    (mbf_optax.flax_partition, 0),
    (mbf_optax.equinox_partition, 1),
  ):
    (reading,) = read({"A": array(32, 64), "c": B}, preset).values()
    assert axes(reading) == ((1,), (), True)
    (reading,) = read({"A": array(32, 32), "c": B}, preset).values()
    assert axes(reading) == ((square,), (), True)
    (reading,) = read({"A": array(32, 64)}, preset).values()
    assert axes(reading) == ((square,), (), False)


@pytest.mark.parametrize(
  ("layer", "expected"),
  [
    ({"weight": array(32, 64), "bias": B}, ((1,), (), True)),
    ({"weight": array(32, 64)}, ((1,), (), False)),
    ({"weight": array(32, 32), "bias": B}, ((1,), (), True)),
    ({"weight": W, "bias": B}, ((0,), (), True)),
    ({"weight": array(8, 4, 3, 3), "bias": array(8, 1, 1)}, ((2, 3), (), False)),
    ({"weight": array(8, 4, 3, 3), "bias": array(8)}, ((2, 3), (), False)),
    ({"weight": array(3, 3, 4, 8), "bias": array(8)}, ((0, 1), (), False)),
    ({"w": array(32, 64), "b": B}, ((1,), (), True)),
  ],
)
def test_other_libraries_under_the_default_partition(layer, expected):
  readings = read({"layer": layer})
  (weight,) = readings.keys() & {"layer/weight", "layer/w"}
  assert axes(readings[weight]) == expected


def test_lone_matrices():
  tree = {
    "lora_a": array(64, 4),
    "lora_b": array(4, 64),
    "layer": {"theta": array(5, 3), "eta": array(3, 7)},
  }
  readings = read(tree)
  assert {axes(r) for r in readings.values()} == {((0,), (), False)}
  assert {r.why for r in readings.values()} == {"recognised"}


@pytest.mark.parametrize(
  "tree",
  [
    {"wte": array(100, 8)},
    {"pos_emb": array(100, 8)},
    {"embedding": array(100, 8)},
    {"scale": array(64, 49)},
    {"class_token": array(3, 8)},
    {"ln": {"gain": array(6, 8)}},
    {"token_embedding": {"table": array(100, 8)}},
    {"row": array(1, 8)},
    {"embedding": array(100, 8), "bias": array(8)},
    {"pos_embed": array(1, 197, 768)},
  ],
)
def test_embeddings_norms_and_positions(tree):
  for reading in read(tree).values():
    assert reading.layer.estimator == "rms"
    assert reading.why == "recognised" or reading.shape[:1] == (1,)


def test_stacks_of_unknown_names():
  pair = {"W1": array(6, 64, 32), "b1": array(6, 32)}
  (reading,) = read(pair).values()
  assert axes(reading) == ((1,), (0,), True)
  stack = {"layers": {"ln": {"scale": array(6, 64)}, "wq": array(6, 64, 64)}}
  assert axes(read(stack)["layers/wq"]) == ((1,), (0,), False)


@pytest.mark.parametrize(
  ("tree", "expected"),
  [
    ({"W": array(3, 3, 1, 32), "b": B}, ((0, 1), (), False)),
    ({"W": array(32, 1, 3, 3), "b": B}, ((2, 3), (), False)),
    ({"conv1_w": array(3, 3, 1, 32), "conv1_b": B}, ((0, 1), (), False)),
    ({"conv1": array(5, 5, 1, 32)}, ((0, 1), (), False)),
  ],
)
def test_convolutions_of_unknown_names(tree, expected):
  reading = next(r for r in read(tree).values() if len(r.shape) == 4)
  assert axes(reading) == expected
  assert reading.layer.estimator == "auto"
  assert reading.layer.channel_axes == (2 if expected[0] == (0, 1) else 1,)


def test_the_blocks_are_the_same_whatever_the_names():
  rng = np.random.default_rng(0)
  w, b = (rng.normal(size=s).astype(np.float32) for s in ((6, 5), (5,)))
  trees = {"Dense_0": {"kernel": w, "bias": b}}, [(w, b)], {"A": w.T, "c": b}
  for tree in trees:
    ((_, reading),) = read(tree).items()
    leaves = paths.flatten(jax.tree.map(jnp.asarray, tree))
    np.testing.assert_array_equal(to_blocks(reading, leaves), np.vstack([w, b]))


def test_a_masked_bias_leaves_the_matrix_a_layer():
  tree = {"W1": W, "b1": optax.MaskedNode()}
  (reading,) = read(tree).values()
  assert axes(reading) == ((0,), (), False)
  assert jax.tree.leaves(tree) == [W]
