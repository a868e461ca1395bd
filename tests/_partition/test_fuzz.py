"""Any tree and any overrides: every leaf is read exactly once, or refused by name.

The paths are worked out here once more, from the containers alone.
"""

import itertools
import math
import re

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import mbf_optax
from mbf_optax._partition.blocks import from_blocks, to_blocks

each_library = pytest.mark.parametrize("library", ["flax", "haiku", "equinox"])
PRESETS = {
  "flax": mbf_optax.flax_partition,
  "haiku": mbf_optax.haiku_partition,
  "equinox": mbf_optax.equinox_partition,
}
# The names of the weight, the bias and others, as that library has them.
LEAVES = {
  "flax": ["kernel", "bias", "scale", "embedding"],
  "haiku": ["w", "b", "w_i", "w_h", "scale", "offset", "embeddings"],
  "equinox": ["weight", "bias", "weight_ih", "weight_hh", "bias_n"],
}
MODULES = [
  *("Dense_0", "Conv_1", "LayerNorm_2", "ScanLayer_0", "VmapBlock_0", "blocks"),
  *("query", "key", "value", "out", "attention", "mlp/~/linear_0", "embed", "norm"),
]
ALL_NAMES = [*MODULES, *itertools.chain(*LEAVES.values())]
DTYPES = ["float32", "float32", "bfloat16", "float16", "complex64"]
READINGS = ["auto", "full", "shared", "two_sided", "low_rank", "conv", "dense", "rms"]

names = st.one_of(
  st.sampled_from(ALL_NAMES),
  st.sampled_from(ALL_NAMES),
  st.text(max_size=3),
  st.sampled_from(["", "/", "(", "a/b", "params", "Dense_0/kernel", "'"]),
)
shapes = st.lists(st.sampled_from([2, 3, 1, 4, 0]), max_size=6).map(tuple)


def leaf(shape, dtype="float32"):
  return jax.ShapeDtypeStruct(shape, dtype)


@st.composite
def layers(draw, library):
  """A weight with the bias of its outputs, stacked or not; perhaps a norm beside."""
  weight, bias, *_ = LEAVES[library]
  stack, shape = draw(shapes)[:2], draw(shapes)
  outputs = shape[:1] if library == "equinox" else shape[-1:]
  if len(shape) == 3 and draw(st.booleans()):
    outputs = shape[1:]
  dtype = draw(st.sampled_from(DTYPES))
  return {weight: leaf(stack + shape, dtype), bias: leaf(stack + outputs, dtype)}


@st.composite
def crowded(draw, library):
  """Modules without a name, or named like a part of a path, beside others."""
  modules = st.sampled_from(["", "Dense_0"])
  layer = draw(layers(library))
  tree = {**layer, draw(modules): layer}
  key = draw(st.sampled_from(LEAVES[library]))
  return {**tree, f"{draw(modules)}/{key}": draw(st.builds(leaf, shapes))}


def trees(library):
  own = st.dictionaries(
    st.sampled_from(LEAVES[library]), st.builds(leaf, shapes), min_size=1, max_size=3
  )
  ends = st.one_of(
    layers(library), own, st.builds(leaf, shapes, st.sampled_from(DTYPES)), st.none()
  )

  def inner(children):
    return st.one_of(
      st.dictionaries(names, children, max_size=3),
      st.dictionaries(st.integers(-1, 11), children, max_size=2),
      st.lists(children, max_size=3),
      st.lists(children, max_size=2).map(tuple),
    )

  return st.one_of(
    ends,
    crowded(library),
    st.recursive(inner(ends), inner, max_leaves=3),
    st.recursive(ends, inner),
  )


def leaves_of(tree, path=()):
  """Pairs of a path and a leaf."""
  if isinstance(tree, jax.ShapeDtypeStruct):
    return [("/".join(path), tree)]
  if tree is None:
    return []
  items = tree.items() if isinstance(tree, dict) else enumerate(tree)
  found = [leaves_of(child, (*path, str(key))) for key, child in items]
  return list(itertools.chain(*found))


@st.composite
def layer_objects(draw):
  estimator = draw(
    st.sampled_from(
      ["full", "shared", "low_rank", "auto", "two_sided", "rms", "inverse"]
    )
  )
  axes = ()
  if estimator not in ("rms", "inverse"):
    axis = st.sampled_from([0, -1, 1, -2, 2, -3, 5])
    axes = tuple(draw(st.lists(axis, min_size=1, max_size=2)))
  stacks = st.sampled_from([(), (), (), (0,), (1,), (0, 1), (-1,), (7,)])
  stack, joins_bias = draw(stacks), draw(st.booleans())
  return mbf_optax.Layer(axes, estimator, stack, joins_bias, rank=2)


def overrides(paths):
  """Pairs of a pattern, of these paths or of any kind, and of what to read."""
  patterns = [st.sampled_from([*ALL_NAMES, "[", "a{2", "*"]) | st.text(max_size=3)]
  patterns += [st.sampled_from(["", "^", "$", r"[^\d]*", "(?i)N|."])] * 2
  if paths:
    path = st.sampled_from(paths)
    ends = st.builds(lambda p, n: re.escape(p[n:]), path, st.integers(0, 9))
    patterns += [ends, ends, ends, path.map(lambda p: p[:6])]
  named = st.sampled_from([*READINGS, *READINGS, "diagonal"])
  layer = st.one_of(named, layer_objects())
  return st.lists(st.tuples(st.one_of(*patterns), layer), max_size=2)


@st.composite
def cases(draw, library):
  """A tree and the arguments of a partition."""
  tree = draw(trees(library))
  paths = [path for path, _ in leaves_of(tree)]
  return tree, {
    "dense": draw(st.sampled_from(["auto", "full", "shared", "two_sided", "low_rank"])),
    "rank": draw(st.integers(1, 3)),
    "full_limit": draw(st.integers(1, 9)),
    "block_limit": draw(st.integers(1, 9)),
    "overrides": draw(overrides(paths)),
  }


def check_cover(readings, leaves):
  """Every leaf is in one reading, every element in one block."""
  sizes = {path: math.prod(leaf.shape) for path, leaf in leaves}
  paths = [path for reading in readings for path in reading.paths]
  assert sorted(paths) == sorted(sizes)
  for reading in readings:
    elements = sum(sizes[path] for path in reading.paths)
    assert reading.blocks * reading.block_size == elements
    assert reading.path in reading.describe() or reading.path == ""


def check_shapes(readings, leaves):
  """Of the blocks, and of what comes back from them."""
  arrays = {path: leaf(found.shape) for path, found in leaves}
  for reading in readings:
    blocks = jax.eval_shape(lambda a, r=reading: to_blocks(r, a), arrays)
    assert blocks.size == reading.blocks * reading.block_size
    back = jax.eval_shape(lambda b, r=reading: from_blocks(r, b), blocks)
    chex.assert_trees_all_equal(back, {path: arrays[path] for path in reading.paths})


def read(library, tree, **arguments):
  """The readings, or ``None`` if refused by the name of a leaf or of an override."""
  try:
    return PRESETS[library](**arguments)(tree)
  except ValueError as error:
    refusal = str(error)
  patterns = [pattern for pattern, _ in arguments.get("overrides", [])]
  known = [*patterns, *(path for path, _ in leaves_of(tree))]
  assert any(repr(name) in refusal for name in known), refusal
  return None


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.data())
@each_library
def test_names_and_shapes_alone_are_never_refused(library, data):
  """Unless two leaves have one path."""
  tree = data.draw(trees(library))
  readings, leaves = read(library, tree), leaves_of(tree)
  assert (readings is None) == (len(dict(leaves)) < len(leaves))
  if readings is not None:
    check_cover(readings, leaves)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.data())
@each_library
def test_overrides_are_followed_or_refused_by_name(library, data):
  tree, arguments = data.draw(cases(library))
  readings = read(library, tree, **arguments)
  if readings is not None:
    check_cover(readings, leaves_of(tree))
    check_shapes(readings, leaves_of(tree))


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.data())
@each_library
def test_elements_return_to_their_places(library, data):
  tree, arguments = data.draw(cases(library))
  readings, leaves = read(library, tree, **arguments), leaves_of(tree)
  hypothesis.assume(readings)
  sizes = [math.prod(found.shape) for _, found in leaves]
  ends = np.cumsum(sizes)
  arrays = {
    path: jnp.arange(end - size, end, dtype=jnp.float32).reshape(found.shape)
    for (path, found), size, end in zip(leaves, sizes, ends, strict=True)
  }
  seen = []
  for reading in readings:
    blocks = to_blocks(reading, arrays)
    seen.extend(np.ravel(blocks))
    chex.assert_trees_all_equal(
      from_blocks(reading, blocks), {path: arrays[path] for path in reading.paths}
    )
  assert sorted(seen) == list(range(sum(sizes)))
