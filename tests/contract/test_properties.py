"""What holds for every tree and every partition of it."""

import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import mbf_optax
from mbf_optax._partition.blocks import from_blocks, to_blocks
from mbf_optax._partition.layer import check_cover

# Random trees.

MODULES = ["Dense_0", "Conv_1", "LayerNorm_2", "query", "out", "ScanBlock_0", "blocks"]
NAMES = ["kernel", "bias", "scale", "embedding", "alpha"]
DTYPES = [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
READINGS = ["full", "shared", "low_rank", "conv", "dense", "rms"]
LAYERS = [
  mbf_optax.Layer((0,), joins_bias=False),
  mbf_optax.Layer((-1,), "shared", joins_bias=False),
  mbf_optax.Layer((-2, -1), "low_rank", rank=2),
  mbf_optax.Layer((1,), stack_axes=(0,), joins_bias=False),
  mbf_optax.Layer((), "inverse"),
]


def shapes(ranks=(0, 5), sizes=(1, 3)):
  sizes = st.integers(*sizes)
  return st.lists(sizes, min_size=ranks[0], max_size=ranks[1]).map(tuple)


@st.composite
def modules(draw):
  """A leaf of any shape, or a kernel with the bias that fits it, or any names."""
  dtype = draw(st.sampled_from(DTYPES))
  kind = draw(st.sampled_from(["leaf", "layer", "names"]))
  if kind == "leaf":
    return jax.ShapeDtypeStruct(draw(shapes(sizes=(0, 3))), dtype)
  if kind == "layer":
    kernel = draw(shapes((2, 5)))
    module = {"kernel": kernel, "bias": kernel[-1:]}
  else:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    module = {name: draw(shapes()) for name in names}
  return {name: jax.ShapeDtypeStruct(s, dtype) for name, s in module.items()}


def trees(max_modules=3):
  names = st.sampled_from(MODULES)
  flat = st.dictionaries(names, modules(), max_size=max_modules)
  return st.one_of(
    flat,
    st.fixed_dictionaries({"params": flat}),
    st.lists(modules(), max_size=2).map(tuple),
  )


def partitions():
  readings = st.sampled_from([*READINGS, *LAYERS])
  pattern = st.sampled_from(["kernel", "Dense_0", "bias", "^"])
  overrides = st.lists(st.tuples(pattern, readings), max_size=2)
  dense = st.sampled_from(["auto", "full", "shared", "low_rank"])
  return st.builds(
    mbf_optax.flax_partition,
    dense=dense,
    rank=st.integers(1, 3),
    full_limit=st.integers(1, 4),
    overrides=overrides,
  )


def leaves_by_path(tree):
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs
  }


def read(partition, tree):
  """The readings, or ``None`` if they are refused with a leaf's path in the message."""
  try:
    return partition(tree)
  except ValueError as error:
    refusal = str(error)
  paths = map(repr, leaves_by_path(tree))
  assert "matches no leaf" in refusal or any(path in refusal for path in paths)
  return None


def covers_once(readings, tree):
  leaves = leaves_by_path(tree)
  check_cover(readings, leaves)
  paths = [path for reading in readings for path in reading.paths]
  assert sorted(paths) == sorted(leaves)
  for reading in readings:
    elements = sum(math.prod(leaves[path].shape) for path in reading.paths)
    assert reading.blocks * reading.block_size == elements


@hypothesis.settings(max_examples=300)
@hypothesis.given(trees(), partitions())
def test_every_parameter_is_in_exactly_one_block_or_refused_by_name(tree, partition):
  readings = read(partition, tree)
  if readings is not None:
    covers_once(readings, tree)


@hypothesis.settings(max_examples=150)
@hypothesis.given(trees())
def test_the_default_partition_refuses_nothing(tree):
  covers_once(mbf_optax.flax_partition()(tree), tree)


@hypothesis.settings(max_examples=20)
@hypothesis.given(trees(2), partitions())
def test_blocks_and_back(tree, partition):
  """Numbered elements: each is in one block, and returns to its place."""
  readings = read(partition, tree)
  hypothesis.assume(readings)
  numbered, total = {}, 0
  for path, leaf in leaves_by_path(tree).items():
    size = math.prod(leaf.shape)
    numbers = np.arange(total, total + size, dtype=np.float32)
    numbered[path] = jnp.asarray(numbers.reshape(leaf.shape))
    total += size
  seen = []
  for reading in readings:
    blocks = to_blocks(reading, numbered)
    assert blocks.shape[0] == (1 if reading.layer.elementwise else reading.block_size)
    assert math.prod(blocks.shape) == reading.blocks * reading.block_size
    seen.extend(np.ravel(blocks))
    chex.assert_trees_all_equal(
      from_blocks(reading, blocks), {path: numbered[path] for path in reading.paths}
    )
  assert sorted(seen) == list(range(total))


def stable(before, after):
  chex.assert_trees_all_equal_structs(after, before)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, before)


@hypothesis.settings(max_examples=15)
@hypothesis.given(trees(2), partitions())
def test_structure_and_dtypes_are_kept(tree, partition):
  hypothesis.assume(read(partition, tree) is not None)
  tx = mbf_optax.scale_by_mbf(partition=partition)
  with jax.numpy_dtype_promotion("standard"):
    state = jax.eval_shape(tx.init, tree)
    updates, new = jax.eval_shape(tx.update, tree, state)
  stable(tree, updates)
  stable(state, new)


@hypothesis.settings(max_examples=5)
@hypothesis.given(trees(2), partitions(), st.integers(0, 100))
def test_updates_are_finite(tree, partition, seed):
  hypothesis.assume(read(partition, tree))
  rng = np.random.default_rng(seed)
  gradients = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree
  )
  tx = mbf_optax.scale_by_mbf(partition=partition, inverse_update_period=1)
  with jax.numpy_dtype_promotion("standard"):
    updates, state = jax.jit(tx.update)(gradients, tx.init(gradients))
  chex.assert_tree_all_finite((updates, state))
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
