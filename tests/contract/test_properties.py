"""What holds for every tree, and the estimators against explicit matrices."""

import functools
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from mbf_optax.layers import check_cover, from_blocks, to_blocks

import mbf_optax

# Random trees.

MODULES = ["Dense_0", "Conv_1", "LayerNorm_2", "query", "out", "ScanBlock_0", "blocks"]
NAMES = ["kernel", "bias", "scale", "embedding", "alpha"]
DTYPES = [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
READINGS = ["full", "shared", "low_rank", "conv", "dense", "rms"]
LAYERS = [
  mbf_optax.Layer((0,), joins_bias=False),
  mbf_optax.Layer((-1,), "shared", joins_bias=False),
  mbf_optax.Layer((-2, -1), "low_rank", rank=2),
  mbf_optax.Layer((1,), stack_axes=1, joins_bias=False),
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


# Blocks of one element.


@functools.cache
def one_element_step():
  partition = mbf_optax.flax_partition(overrides=[("kernel", "conv")])

  @jax.jit
  def step(gradients, state, hyper):
    tx = mbf_optax.scale_by_mbf(
      curvature_update_period=1, inverse_update_period=1, partition=partition, **hyper
    )
    return tx.update(gradients, state)

  return mbf_optax.scale_by_mbf(partition=partition).init, step


values = st.floats(-10, 10, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  st.lists(st.lists(values, min_size=6, max_size=6), min_size=1, max_size=5),
  st.floats(0.05, 10),
  st.floats(0, 0.95),
  st.floats(0, 0.95),
)
def test_blocks_of_one_element_are_adam_without_its_root(rows, damping, mu, beta):
  """``m / (G / c + lambda)``: kernels with one offset, and biases of convolutions."""
  init, step = one_element_step()
  hyper = {"damping": damping, "momentum": mu, "curvature_ema": beta}
  hyper = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
  state = init({"kernel": jnp.zeros((1, 1, 2, 2)), "bias": jnp.zeros(2)})
  m = statistic = np.zeros(6)
  for count, row in enumerate(np.asarray(rows)):
    gradients = {
      "kernel": jnp.asarray(row[:4].reshape(1, 1, 2, 2), jnp.float32),
      "bias": jnp.asarray(row[4:], jnp.float32),
    }
    updates, state = step(gradients, state, hyper)
    m = mu * m + row
    statistic = beta * statistic + (1 - beta) * row**2
    expected = m / (statistic / (1 - beta ** (count + 1)) + damping)
    given = np.concatenate([np.ravel(updates["kernel"]), updates["bias"]])
    np.testing.assert_allclose(given, expected, rtol=2e-4, atol=1e-4)


# Explicit matrices.


def network(params, images):
  """A convolution and a dense layer, in float64 as in float32."""
  hidden = jax.lax.conv_general_dilated(
    images,
    params["Conv_0"]["kernel"],
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  hidden = jnp.tanh(hidden + params["Conv_0"]["bias"].reshape(1, 1, 1, -1))
  hidden = hidden.reshape(len(images), -1)
  bias = params["Dense_1"]["bias"]
  logits = jnp.matmul(hidden, params["Dense_1"]["kernel"]) + bias.reshape(1, -1)
  return jax.nn.log_softmax(logits)


def mini_blocks(numbers):
  """The elements' numbers of every mini-block, written out from the paper."""
  conv, dense = numbers["Conv_0"], numbers["Dense_1"]
  for i in range(conv["kernel"].shape[2]):
    for j in range(conv["kernel"].shape[3]):
      yield [conv["kernel"][y, x, i, j] for y in range(2) for x in range(2)]
  for j in range(len(conv["bias"])):
    yield [conv["bias"][j]]
  for j in range(len(dense["bias"])):
    yield [*dense["kernel"][:, j], dense["bias"][j]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_direction_is_that_of_the_dense_block_diagonal_fisher(dtype):
  with jax.enable_x64(dtype == "float64"):
    rng = np.random.default_rng(0)
    shapes = {
      "Conv_0": {"kernel": (2, 2, 2, 2), "bias": (2,)},
      "Dense_1": {"kernel": (8, 3), "bias": (3,)},
    }
    params = jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
      shapes,
      is_leaf=lambda node: isinstance(node, tuple),
    )
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = jax.tree.unflatten(
      structure,
      [
        np.arange(end - leaf.size, end).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
      ],
    )

    @jax.jit
    def gradient(params, images, labels):
      def loss(params):
        picked = jnp.take_along_axis(network(params, images), labels[:, None], 1)
        return -jnp.mean(picked)

      return jax.grad(loss)(params)

    damping, mu, beta = 1e-2, 0.9, 0.8
    tx = mbf_optax.scale_by_mbf(
      damping=damping,
      momentum=mu,
      curvature_ema=beta,
      curvature_update_period=1,
      inverse_update_period=1,
    )
    state, update = tx.init(params), jax.jit(tx.update)
    fisher, momentum = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1])
    for step in range(4):
      images = jnp.asarray(rng.normal(size=(5, 3, 3, 2)), dtype)
      gradients = gradient(params, images, jnp.asarray(rng.integers(0, 3, 5)))
      updates, state = update(gradients, state)
      flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
      flat = flat.astype(np.float64)
      momentum = mu * momentum + flat
      outer = np.zeros_like(fisher)
      for block in mini_blocks(numbers):
        outer[np.ix_(block, block)] = np.outer(flat[block], flat[block])
      fisher = beta * fisher + (1 - beta) * outer
      damped = fisher / (1 - beta ** (step + 1)) + damping * np.eye(len(flat))
      expected = np.linalg.solve(damped, momentum)
      given = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
      tolerance = 2e-4 if dtype == "float32" else 1e-11
      np.testing.assert_allclose(
        given, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
      )


# Low rank against full.

INPUTS, NEURONS, RANK, BETA, DAMPING = 4, 2, 3, 0.7, 0.1
LAST = 9


@functools.cache
def pair():
  """The same layer with both estimators, in one compiled step."""
  partition = mbf_optax.flax_partition(
    dense="full", rank=RANK, overrides=[("low", "low_rank")]
  )

  def transformation(period):
    return mbf_optax.scale_by_mbf(
      damping=DAMPING,
      momentum=0.0,
      curvature_ema=BETA,
      curvature_update_period=period,
      inverse_update_period=period,
      partition=partition,
    )

  @jax.jit
  def step(gradient, state, period):
    gradients = {"full": {"kernel": gradient}, "low": {"kernel": gradient}}
    return transformation(period).update(gradients, state)

  zeros = jnp.zeros((INPUTS, NEURONS))
  init = transformation(1).init
  return init({"full": {"kernel": zeros}, "low": {"kernel": zeros}}), step


def implied_matrices(state, step):
  """``P^(-1) - lambda I`` of each neuron; ``P`` by its action, statistics at rest."""
  columns = []
  for unit in np.eye(INPUTS):
    vector = jnp.broadcast_to(jnp.asarray(unit)[:, None], (INPUTS, NEURONS))
    updates, _ = step(vector, state, 10**6)
    columns.append({name: np.asarray(updates[name]["kernel"]) for name in updates})
  return {
    name: [
      np.linalg.inv(np.stack([column[name][:, j] for column in columns], axis=1))
      - DAMPING * np.eye(INPUTS)
      for j in range(NEURONS)
    ]
    for name in ("full", "low")
  }


def test_low_rank_is_full_up_to_the_tail():
  """Exactly until the history is full; then within the weight of what was dropped.

  The normalised weights of the dropped gradients sum to ``tail``, which low rank hands
  out to those it keeps. The difference of the matrices is one positive semidefinite
  matrix minus another, each a combination of outer products with weights that sum to
  ``tail``: no eigenvalue exceeds ``tail`` times the largest squared norm.
  """
  with jax.enable_x64(True):
    state, step = pair()
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(LAST, INPUTS, NEURONS))
    distances = []
    for count, gradient in enumerate(gradients, start=1):
      updates, state = step(jnp.asarray(gradient), state, 1)
      matrices = implied_matrices(state, step)
      largest = np.max(np.sum(gradients[:count] ** 2, axis=1), axis=0)
      tail = max(0, (BETA**RANK - BETA**count) / (1 - BETA**count))
      for j in range(NEURONS):
        difference = matrices["full"][j] - matrices["low"][j]
        distance = np.linalg.norm(difference, 2)
        assert distance <= tail * largest[j] + 1e-10
        distances.append(distance)
      if count <= RANK:
        chex.assert_trees_all_close(updates["full"], updates["low"], rtol=1e-10)
    assert distances[-1] > 1e-3  # the bound is not met by equality
