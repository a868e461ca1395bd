"""Traced partitions of parts of a tree, with overrides, and of large models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import mbf_optax
from tests._partition.traced import RMS, alone, array, dense, described, kernel, read

pytestmark = pytest.mark.promotes

PARAMS = {
  "conv": {"kernel": array(3, 3, 4, 6), "bias": array(6)},
  "dense": {"kernel": array(6, 8), "bias": array(8)},
  "head": {"kernel": array(8, 2), "bias": array(2)},
  "table": array(11, 8),
}
X, TOKENS = array(2, 8, 8, 4), array(2, dtype=jnp.int32)
EXPECTED = {
  "conv/kernel": kernel((0, 1)),
  "conv/bias": alone(),
  "dense/kernel": dense((0,), bias="dense/bias", axes=(1,)),
  "head/kernel": dense((0,), bias="head/bias", axes=(1,)),
  "table": RMS,
}


def model(p, x, tokens):
  numbers = ("NHWC", "HWIO", "NHWC")
  x = lax.conv_general_dilated(
    x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=numbers
  )
  x = jnp.tanh(x + p["conv"]["bias"]).mean((1, 2))
  x = jnp.tanh(x @ p["dense"]["kernel"] + p["dense"]["bias"]) + p["table"][tokens]
  return x @ p["head"]["kernel"] + p["head"]["bias"]


def loss(p, x, tokens):
  y = model(p, x, tokens)
  return jnp.mean(y**2), {"largest": y.max()}


trace = functools.partial(mbf_optax.traced_partition, loss, PARAMS, X, TOKENS)


def readings(partition, params):
  return {r.path: described(r) for r in partition(params)}


def concrete(tree, seed=0):
  rng = np.random.default_rng(seed)

  def draw(leaf):
    return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree.map(draw, tree)


def test_a_traced_partition_is_static():
  one, other = trace(), trace()
  assert one == other
  assert hash(one) == hash(other)
  assert one != trace(dense="full")
  assert readings(one, PARAMS) == EXPECTED
  assert one(PARAMS) is one(concrete(PARAMS))
  assert one.unread == ()


def test_nothing_is_computed():
  """Neither by tracing, of abstract or of real arrays, nor by applying."""

  def never(p, x, tokens):
    jax.debug.callback(lambda: pytest.fail("the loss was run"))
    return loss(p, x, tokens)

  args = concrete((PARAMS, X))
  partition = mbf_optax.traced_partition(never, *args, jnp.zeros(2, jnp.int32))
  assert partition == trace()


@pytest.mark.parametrize("hidden", [None, optax.MaskedNode()])
def test_parts_of_the_tree(hidden):
  """As decay masks and label trees make them: weights and biases without each other."""
  partition = trace()

  def is_weight(path, leaf):
    return leaf if leaf.ndim > 1 else hidden

  weights = jax.tree_util.tree_map_with_path(is_weight, PARAMS)
  assert readings(partition, weights) == {
    "conv/kernel": kernel((0, 1)),
    "dense/kernel": dense((0,)),
    "head/kernel": dense((0,)),
    "table": RMS,
  }

  def is_bias(path, leaf):
    return leaf if leaf.ndim == 1 else hidden

  biases = jax.tree_util.tree_map_with_path(is_bias, PARAMS)
  assert readings(partition, biases) == {
    "conv/bias": alone(),
    "dense/bias": RMS,
    "head/bias": RMS,
  }
  assert partition({"conv": hidden}) == ()


def test_a_parameter_that_was_not_traced():
  with pytest.raises(ValueError, match=r"no parameter 'dense/scale'.*trace again"):
    trace()({**PARAMS, "dense": {"scale": array(6)}})


def test_a_parameter_of_another_shape():
  changed = {**PARAMS, "head": {"kernel": array(8, 3), "bias": array(3)}}
  with pytest.raises(
    ValueError, match=r"'head/bias' has shape \(3,\) and had \(2,\).*again"
  ):
    trace()(changed)


def test_a_leaf_that_is_no_array():
  with pytest.raises(ValueError, match=r"'f' is <.*eqx.filter"):
    mbf_optax.traced_partition(lambda p: 0.0, {"f": jnp.tanh})


BAD_ARGUMENTS = {
  "dense='wide'; use one of 'auto', 'full'": {"dense": "wide"},
  "rank is 0": {"rank": 0},
  "full_limit is 0": {"full_limit": 0},
  "block_limit is -1": {"block_limit": -1},
  "asks for 'densely'; use a Layer or one of": {"overrides": [("a", "densely")]},
  r"'\(' is no regular expression": {"overrides": [("(", "rms")]},
  "'nowhere' matches no leaf; the paths are conv/bias": {
    "overrides": [("nowhere", "rms")]
  },
  r"an override is 'conv'; give pairs": {"overrides": ["conv"]},
  r"reads 'dense/kernel', of shape \(6, 8\), as 'conv'": {
    "overrides": [("dense", "conv")]
  },
  r"reads 'head/bias', of shape \(2,\), as 'dense'": {
    "overrides": [("head/bias", "dense")]
  },
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments(message):
  with pytest.raises((TypeError, ValueError), match=message):
    trace(**BAD_ARGUMENTS[message])


OVERRIDES = {  # what is asked for, and what changes
  "rms": ([("dense", "rms")], {"dense/kernel": RMS, "dense/bias": RMS}),
  "an estimator": (
    [("dense", "shared")],
    {"dense/kernel": ((0,), (), "shared", "dense/bias", (1,))},
  ),
  "a convolution as a dense layer": (
    [("conv", "dense")],
    {"conv/kernel": dense((0, 1, 2), bias="conv/bias", axes=(3,))},
  ),
  "a bias of its own": (
    [("head/bias", "rms")],
    {"head/kernel": dense((0,)), "head/bias": RMS},
  ),
  "a layer": (
    [("head/kernel", mbf_optax.Layer((-1,), "full", joins_bias=False))],
    {"head/kernel": kernel((1,), estimator="full"), "head/bias": alone()},
  ),
  "an embedding as a dense layer": ([("table", "dense")], {"table": dense((0,))}),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides(name):
  overrides, changed = OVERRIDES[name]
  expected = {**EXPECTED, **changed}
  joined = {reading[3] for reading in expected.values() if len(reading) > 3}
  expected = {path: r for path, r in expected.items() if path not in joined}
  assert readings(trace(overrides=overrides), PARAMS) == expected


def test_an_override_decides_how_a_tied_array_is_read():
  def tied(p, x):
    return jnp.mean((jnp.tanh(x @ p) @ p.T) ** 2)

  overrides = [("", "full")]
  found = read(tied, array(4, 6), array(3, 4), overrides=overrides)
  assert found == {"": kernel((0,), estimator="full")}


def test_limits_are_those_of_the_layers():
  partition = trace(rank=3, full_limit=7, block_limit=64)
  layer = partition(PARAMS)[2].layer
  assert (layer.rank, layer.full_limit, layer.block_limit) == (3, 7, 64)


def test_complex_arrays_take_no_blocks():
  args = (lambda p, x: (x @ p).real.sum(), array(4, 3, dtype=jnp.complex64))
  with pytest.raises(ValueError, match="complex"):
    mbf_optax.traced_partition(
      *args, array(3, 4, dtype=jnp.complex64), overrides=[("", mbf_optax.Layer((0,)))]
    )


def test_an_optimizer_takes_it_under_jit():
  """With weights and biases in groups of their own, each of which it reads."""
  labels = jax.tree.map(
    lambda leaf: "matrix" if len(leaf.shape) > 1 else "rest", PARAMS
  )
  groups = {
    "matrix": mbf_optax.scale_by_mbf_adam(partition=trace()),
    "rest": mbf_optax.scale_by_mbf(partition=trace()),
  }
  tx = optax.partition(groups, labels)
  state = jax.eval_shape(tx.init, PARAMS)
  updates, _ = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def test_the_preset_reads_the_same():
  """But for a table that is looked up in, which only its use tells from a matrix."""
  ours, theirs = trace()(PARAMS), mbf_optax.flax_partition()(PARAMS)
  named = [reading for reading in theirs if reading.path != "table"]
  assert [reading for reading in ours if reading.path != "table"] == named


def test_the_warning_of_init_gives_the_reason():
  """And says what to do; where most is read as it is used there is none."""

  def tied(p, x):
    return jnp.mean((jnp.tanh(x @ p["tied"]) @ p["tied"].T @ p["w"]) ** 2)

  params = {"tied": array(8, 6), "w": array(8, 4)}
  partition = mbf_optax.traced_partition(tied, params, array(3, 8))
  tx = mbf_optax.scale_by_mbf_adam(partition=partition)
  message = r"their uses.*'tied' \(it is used in two ways.*traced_partition's overrides"
  with pytest.warns(UserWarning, match=message):
    jax.eval_shape(tx.init, params)


# A model of seven billion parameters, never allocated.

WIDTH, HEADS, HIDDEN, VOCABULARY, DEPTH = 4096, 32, 11008, 32000, 32


def transformer(p, tokens):
  def norm(x, scale):
    mean = jnp.mean(jnp.square(x), -1, keepdims=True)
    return (x * lax.rsqrt(mean + 1e-6)).astype(jnp.bfloat16) * scale

  x = p["embedding"][tokens]
  for layer in p["layers"]:
    y = norm(x, layer["norm_1"])
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, layer[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    y = jnp.einsum("bhts,bshk->bthk", weights, v)
    x = x + jnp.einsum("bthk,hkd->btd", y, layer["o"])
    y = norm(x, layer["norm_2"])
    x = x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
  return norm(x, p["norm"]) @ p["head"]


def test_seven_billion_parameters():
  half = functools.partial(array, dtype=jnp.bfloat16)
  heads = (HEADS, WIDTH // HEADS)
  layer = {
    **{name: half(WIDTH, *heads) for name in "qkv"},
    "o": half(*heads, WIDTH),
    "down": half(HIDDEN, WIDTH),
    **{name: half(WIDTH, HIDDEN) for name in ("gate", "up")},
    **{name: half(WIDTH) for name in ("norm_1", "norm_2")},
  }
  params = {
    "embedding": half(VOCABULARY, WIDTH),
    "layers": [layer] * DEPTH,
    "norm": half(WIDTH),
    "head": half(WIDTH, VOCABULARY),
  }
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 6.7e9

  def loss(p, tokens):
    return jnp.mean(transformer(p, tokens))

  partition = mbf_optax.traced_partition(loss, params, array(4, 2048, dtype=jnp.int32))
  found = readings(partition, params)
  for i in range(DEPTH):
    for name in ("q", "k", "v", "gate", "up", "down"):
      assert found[f"layers/{i}/{name}"] == dense((0,))
    assert found[f"layers/{i}/o"] == dense((0, 1))
  assert found["embedding"] == RMS
  assert found["head"] == dense((0,))
  assert partition.unread == ()
