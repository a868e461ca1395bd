"""How Flax models are read, by models that Flax itself initialises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mbf_optax


def shapes_of(module, *inputs):
  with jax.numpy_rank_promotion("allow"):  # Flax relies on it
    shapes = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *map(jnp.zeros, inputs))
    )
  return shapes["params"]


def read(params, **options):
  readings = mbf_optax.flax_partition(**options)(params)
  return {reading.path: reading for reading in readings}


def describe(reading):
  layer = reading.layer
  return (
    layer.estimator,
    layer.block_axes,
    layer.stack_axes,
    reading.bias_path is not None,
  )


class Everything(nn.Module):
  @nn.compact
  def __call__(self, x):  # (batch, 8, 8, 3)
    x = nn.Conv(4, (3, 3), strides=2, name="strided")(x)
    x = nn.Conv(4, (3, 3), kernel_dilation=2, use_bias=False, name="dilated")(x)
    x = nn.Conv(8, (3, 3), feature_group_count=4, name="depthwise")(x)
    x = nn.Conv(8, (5, 3), feature_group_count=2, name="grouped")(x)
    x = nn.Conv(6, (1, 1), name="pointwise")(x)
    x = nn.ConvTranspose(4, (2, 2), name="transpose")(x)
    x = nn.BatchNorm(use_running_average=True, name="batch_norm")(x)
    x = x.reshape(x.shape[0], -1, 4)
    x = nn.Conv(4, (3,), name="conv1d")(x)
    x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
    x = nn.LayerNorm(name="layer_norm")(x)
    x = nn.RNN(nn.GRUCell(4), name="rnn")(x)
    x = nn.DenseGeneral((2, 3), name="general")(x)
    x = nn.DenseGeneral(5, axis=(-2, -1), name="contracting")(x)
    x = nn.Dense(3, use_bias=False, name="no_bias")(x)
    return nn.Dense(100, name="dense")(x) + nn.Embed(7, 100, name="embed")(jnp.array(1))


EXPECTED = {
  "strided/kernel": ("full", (0, 1), 0, False),
  "strided/bias": ("inverse", (), 0, False),
  "dilated/kernel": ("full", (0, 1), 0, False),
  "depthwise/kernel": ("full", (0, 1), 0, False),
  "depthwise/bias": ("inverse", (), 0, False),
  "grouped/kernel": ("full", (0, 1), 0, False),
  "grouped/bias": ("inverse", (), 0, False),
  "pointwise/kernel": ("full", (0, 1, 2), 0, True),
  "transpose/kernel": ("full", (0, 1), 0, False),
  "transpose/bias": ("inverse", (), 0, False),
  "batch_norm/scale": ("rms", (), 0, False),
  "batch_norm/bias": ("rms", (), 0, False),
  "conv1d/kernel": ("full", (0,), 0, False),
  "conv1d/bias": ("inverse", (), 0, False),
  "attention/query/kernel": ("full", (0,), 0, True),
  "attention/key/kernel": ("full", (0,), 0, True),
  "attention/value/kernel": ("full", (0,), 0, True),
  "attention/out/kernel": ("full", (0, 1), 0, True),
  "layer_norm/scale": ("rms", (), 0, False),
  "layer_norm/bias": ("rms", (), 0, False),
  "GRUCell_0/in/kernel": ("full", (0,), 0, True),
  "GRUCell_0/hn/kernel": ("full", (0,), 0, True),
  "general/kernel": ("full", (0,), 0, True),
  "no_bias/kernel": ("full", (0,), 0, False),
  "dense/kernel": ("full", (0,), 0, True),
  "embed/embedding": ("rms", (), 0, False),
}


def test_linen_layers():
  readings = read(shapes_of(Everything(), (2, 8, 8, 3)))
  for path, expected in EXPECTED.items():
    assert describe(readings[path]) == expected, path
  grouped, depthwise = readings["grouped/kernel"], readings["depthwise/kernel"]
  assert (grouped.blocks, grouped.block_size) == (4 * 8, 15)
  assert (depthwise.blocks, depthwise.block_size) == (1 * 8, 9)


def test_contracting_projection_needs_no_help_but_its_name():
  """``(heads, size, out)`` with a bias ``(out,)`` looks like a 1-d convolution."""
  params = shapes_of(Everything(), (2, 8, 8, 3))
  assert describe(read(params)["contracting/kernel"])[1] == (0,)
  readings = read(params, overrides=[("contracting", "dense")])
  assert describe(readings["contracting/kernel"]) == ("full", (0, 1), 0, True)


class Block(nn.Module):
  use_bias: bool = True

  @nn.compact
  def __call__(self, x, _):
    y = nn.LayerNorm(use_bias=self.use_bias)(x)
    y = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias)(y)
    y = nn.Conv(4, (3,), use_bias=self.use_bias)(y)
    return x + nn.Dense(4, use_bias=self.use_bias)(y), None


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", [None, "layers"])
def test_scanned_layers(name, use_bias):
  scanned = nn.scan(
    Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
  )

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return scanned(use_bias=use_bias, name=name)(x, None)[0]

  readings = read(shapes_of(Model(), (2, 5, 4)))
  prefix = name or "ScanBlock_0"
  attention = f"{prefix}/MultiHeadDotProductAttention_0"
  expected = {
    f"{prefix}/Dense_0/kernel": ("full", (1,), 1, use_bias),
    f"{prefix}/Conv_0/kernel": ("full", (1,), 1, False),
    f"{attention}/query/kernel": ("full", (1,), 1, use_bias),
    f"{attention}/out/kernel": ("full", (1, 2), 1, use_bias),
    f"{prefix}/LayerNorm_0/scale": ("rms", (), 0, False),
  }
  for path, want in expected.items():
    assert describe(readings[path]) == want, path


def test_vmapped_layers_without_a_bias_are_known_by_linens_name():
  vmapped = nn.vmap(
    nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0
  )

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return vmapped(3, use_bias=False)(x)

  readings = read(shapes_of(Model(), (2, 6, 4)))
  assert describe(readings["VmapDense_0/kernel"]) == ("full", (1,), 1, False)


def test_a_broadcast_scan_is_not_a_stack():
  cell = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False})

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      scanned = cell(features=4)
      return scanned(jnp.zeros((2, 4)), x)[1]

  for reading in read(shapes_of(Model(), (5, 2, 4))).values():
    assert reading.layer.stack_axes == 0


def test_nnx_reads_as_linen():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(4, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
      self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
      self.embed = nnx.Embed(5, 4, rngs=rngs)

  readings = read(nnx.state(Model(nnx.Rngs(0)), nnx.Param))
  expected = {
    "conv/kernel": ("full", (0, 1), 0, False),
    "conv/bias": ("inverse", (), 0, False),
    "norm/scale": ("rms", (), 0, False),
    "attention/query/kernel": ("full", (0,), 0, True),
    "attention/out/kernel": ("full", (0, 1), 0, True),
    "blocks/1/kernel": ("full", (0,), 0, True),
    "embed/embedding": ("rms", (), 0, False),
  }
  assert {path: describe(readings[path]) for path in expected} == expected


def test_boxed_parameters_have_the_paths_of_plain_ones():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  boxed = shapes_of(nn.Dense(4, kernel_init=init), (2, 3))
  plain = shapes_of(nn.Dense(4), (2, 3))
  assert isinstance(boxed["kernel"], nn.Partitioned)
  assert read(boxed) == read(plain)


@pytest.mark.parametrize(
  ("inputs", "estimator"),
  [(31, "full"), (32, "shared"), (8192, "shared"), (8193, "low_rank")],
)
def test_auto_follows_the_block_size(inputs, estimator):
  """A neuron's bias counts."""
  params = shapes_of(nn.Dense(2), (1, inputs))
  assert read(params)["kernel"].layer.estimator == estimator


def test_complex_and_empty_arrays_are_elementwise():
  params = {
    "a": {"kernel": jnp.zeros((3, 2), jnp.complex64)},
    "b": {"kernel": jnp.zeros((0, 2)), "bias": jnp.zeros(2)},
    "c": {"kernel": jnp.zeros(3)},
  }
  assert {r.layer.estimator for r in read(params).values()} == {"rms"}


def test_overrides():
  params = shapes_of(Everything(), (2, 8, 8, 3))
  readings = read(
    params,
    rank=4,
    overrides=[
      ("pointwise", "conv"),
      ("strided", "shared"),
      ("^dense/", "low_rank"),
      ("depthwise/bias", "rms"),
      ("no_bias", mbf_optax.Layer(block_axes=(-1,))),
      ("grouped", "rms"),
    ],
  )
  assert describe(readings["pointwise/kernel"]) == ("full", (0, 1), 0, False)
  assert describe(readings["pointwise/bias"]) == ("inverse", (), 0, False)
  assert readings["pointwise/kernel"].block_size == 1
  assert describe(readings["strided/kernel"]) == ("shared", (0, 1), 0, False)
  assert describe(readings["strided/bias"]) == ("inverse", (), 0, False)
  assert describe(readings["dense/kernel"]) == ("low_rank", (0,), 0, True)
  assert readings["dense/kernel"].layer.rank == 4
  assert describe(readings["depthwise/kernel"]) == ("full", (0, 1), 0, False)
  assert describe(readings["depthwise/bias"]) == ("rms", (), 0, False)
  assert describe(readings["no_bias/kernel"]) == ("full", (1,), 0, False)
  assert describe(readings["grouped/kernel"]) == ("rms", (), 0, False)
  assert describe(readings["grouped/bias"]) == ("rms", (), 0, False)


def test_an_override_of_a_bias_keeps_it_out_of_the_blocks():
  params = shapes_of(nn.Dense(2), (1, 3))
  readings = read({"a": params, "b": params}, overrides=[("a/bias", "rms")])
  assert describe(readings["a/kernel"]) == ("full", (0,), 0, False)
  assert describe(readings["a/bias"]) == ("rms", (), 0, False)
  assert describe(readings["b/kernel"]) == ("full", (0,), 0, True)
  assert "b/bias" not in readings


def test_complex_arrays_have_no_blocks():
  params = {"a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2, jnp.complex64)}}
  readings = read(params)
  assert describe(readings["a/kernel"]) == ("full", (0,), 0, False)
  assert describe(readings["a/bias"]) == ("rms", (), 0, False)
  blocks = mbf_optax.Layer(block_axes=(0,))
  with pytest.raises(ValueError, match="'a/bias', which is complex"):
    read(params, overrides=[("a/bias", blocks)])


@pytest.mark.parametrize("shape", [(3, 0), (0, 3)])
def test_a_layer_without_blocks_is_refused(shape):
  params = {"kernel": jnp.zeros(shape)}
  with pytest.raises(ValueError, match="no element lies in blocks"):
    read(params, overrides=[("kernel", mbf_optax.Layer(block_axes=(0,)))])


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3,)])
def test_convolutions_named_like_attention(kernel):
  class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
      query = nn.Conv(4, kernel, name="query")(x)
      return nn.Conv(2, kernel, name="out")(query)

  params = shapes_of(Attention(), (1, *[4] * len(kernel), 3))
  readings = read(params)
  spatial = tuple(range(len(kernel)))
  for name, inputs in (("query", 3), ("out", 4)):
    reading = readings[f"{name}/kernel"]
    if kernel == (1, 1):
      assert describe(reading) == ("full", (0, 1, 2), 0, True)
      assert reading.block_size == inputs + 1
    else:
      assert describe(reading) == ("full", spatial, 0, False)


def test_first_matching_override_wins():
  params = shapes_of(nn.Dense(2), (1, 3))
  readings = read(params, overrides=[("kernel", "shared"), ("kernel", "low_rank")])
  assert readings["kernel"].layer.estimator == "shared"


@pytest.mark.parametrize(
  "tree", [np.zeros(3), (np.zeros(2), [np.zeros((2, 2))]), {}, None]
)
def test_trees_without_names_are_elementwise(tree):
  readings = read(tree)
  assert len(readings) == len(jax.tree.leaves(tree))
  assert all(r.layer.estimator == "rms" for r in readings.values())
