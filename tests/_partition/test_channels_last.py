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
  "strided/kernel": ("auto", (0, 1), (), False),
  "strided/bias": ("inverse", (), (), False),
  "dilated/kernel": ("auto", (0, 1), (), False),
  "depthwise/kernel": ("auto", (0, 1), (), False),
  "depthwise/bias": ("inverse", (), (), False),
  "grouped/kernel": ("auto", (0, 1), (), False),
  "grouped/bias": ("inverse", (), (), False),
  "pointwise/kernel": ("auto", (0, 1, 2), (), True),
  "transpose/kernel": ("auto", (0, 1), (), False),
  "transpose/bias": ("inverse", (), (), False),
  "batch_norm/scale": ("rms", (), (), False),
  "batch_norm/bias": ("rms", (), (), False),
  "conv1d/kernel": ("auto", (0,), (), False),
  "conv1d/bias": ("inverse", (), (), False),
  "attention/query/kernel": ("auto", (0,), (), True),
  "attention/key/kernel": ("auto", (0,), (), True),
  "attention/value/kernel": ("auto", (0,), (), True),
  "attention/out/kernel": ("auto", (0, 1), (), True),
  "layer_norm/scale": ("rms", (), (), False),
  "layer_norm/bias": ("rms", (), (), False),
  "GRUCell_0/in/kernel": ("auto", (0,), (), True),
  "GRUCell_0/hn/kernel": ("auto", (0,), (), True),
  "general/kernel": ("auto", (0,), (), True),
  "no_bias/kernel": ("auto", (0,), (), False),
  "dense/kernel": ("auto", (0,), (), True),
  "embed/embedding": ("rms", (), (), False),
}


def test_linen_layers():
  readings = read(shapes_of(Everything(), (2, 8, 8, 3)))
  for path, expected in EXPECTED.items():
    assert describe(readings[path]) == expected, path
  grouped, depthwise = readings["grouped/kernel"], readings["depthwise/kernel"]
  assert (grouped.blocks, grouped.block_size) == (4 * 8, 15)
  assert (depthwise.blocks, depthwise.block_size) == (1 * 8, 9)


def test_contracting_projection_of_an_unusual_name():
  """``(heads, size, out)`` with a bias ``(out,)`` looks like a 1-d convolution."""
  params = shapes_of(Everything(), (2, 8, 8, 3))
  assert describe(read(params)["contracting/kernel"]) == ("auto", (1,), (0,), False)
  readings = read(params, overrides=[("contracting", "dense")])
  assert describe(readings["contracting/kernel"]) == ("auto", (0, 1), (), True)
  readings = read(params, overrides=[("contracting", "conv")])
  assert describe(readings["contracting/kernel"]) == ("full", (0,), (), False)
  named = read({"DenseGeneral_0": params["contracting"]})
  assert describe(named["DenseGeneral_0/kernel"]) == ("auto", (0, 1), (), True)


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
    f"{prefix}/Dense_0/kernel": ("auto", (1,), (0,), use_bias),
    f"{prefix}/Conv_0/kernel": ("auto", (1,), (0,), False),
    f"{attention}/query/kernel": ("auto", (1,), (0,), use_bias),
    f"{attention}/out/kernel": ("auto", (1, 2), (0,), use_bias),
    f"{prefix}/LayerNorm_0/scale": ("rms", (), (), False),
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
  assert describe(readings["VmapDense_0/kernel"]) == ("auto", (1,), (0,), False)


def test_a_broadcast_scan_is_not_a_stack():
  cell = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False})

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      scanned = cell(features=4)
      return scanned(jnp.zeros((2, 4)), x)[1]

  for reading in read(shapes_of(Model(), (5, 2, 4))).values():
    assert reading.layer.stack_axes == ()


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
    "conv/kernel": ("auto", (0, 1), (), False),
    "conv/bias": ("inverse", (), (), False),
    "norm/scale": ("rms", (), (), False),
    "attention/query/kernel": ("auto", (0,), (), True),
    "attention/out/kernel": ("auto", (0, 1), (), True),
    "blocks/1/kernel": ("auto", (0,), (), True),
    "embed/embedding": ("rms", (), (), False),
  }
  assert {path: describe(readings[path]) for path in expected} == expected


def test_boxed_parameters_have_the_paths_of_plain_ones():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  boxed = shapes_of(nn.Dense(4, kernel_init=init), (2, 3))
  plain = shapes_of(nn.Dense(4), (2, 3))
  assert isinstance(boxed["kernel"], nn.Partitioned)
  assert read(boxed) == read(plain)


def test_the_optimizer_chooses_the_estimator_of_dense_layers():
  params = shapes_of(nn.Dense(100), (1, 9000))
  layer = read(params, rank=3, full_limit=5, block_limit=64)["kernel"].layer
  assert (layer.estimator, layer.rank) == ("auto", 3)
  assert (layer.full_limit, layer.block_limit) == (5, 64)
  for dense in ("full", "shared", "two_sided", "low_rank"):
    assert read(params, dense=dense)["kernel"].layer.estimator == dense


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
  assert describe(readings["pointwise/kernel"]) == ("full", (0, 1), (), False)
  assert describe(readings["pointwise/bias"]) == ("inverse", (), (), False)
  assert readings["pointwise/kernel"].block_size == 1
  assert describe(readings["strided/kernel"]) == ("shared", (0, 1), (), False)
  assert describe(readings["strided/bias"]) == ("inverse", (), (), False)
  assert describe(readings["dense/kernel"]) == ("low_rank", (0,), (), True)
  assert readings["dense/kernel"].layer.rank == 4
  assert describe(readings["depthwise/kernel"]) == ("auto", (0, 1), (), False)
  assert describe(readings["depthwise/bias"]) == ("rms", (), (), False)
  assert describe(readings["no_bias/kernel"]) == ("full", (1,), (), False)
  assert describe(readings["grouped/kernel"]) == ("rms", (), (), False)
  assert describe(readings["grouped/bias"]) == ("rms", (), (), False)


def test_an_override_of_a_bias_keeps_it_out_of_the_blocks():
  params = shapes_of(nn.Dense(2), (1, 3))
  readings = read({"a": params, "b": params}, overrides=[("a/bias", "rms")])
  assert describe(readings["a/kernel"]) == ("auto", (0,), (), False)
  assert describe(readings["a/bias"]) == ("rms", (), (), False)
  assert describe(readings["b/kernel"]) == ("auto", (0,), (), True)
  assert "b/bias" not in readings


def test_complex_arrays_have_no_blocks():
  params = {"a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2, jnp.complex64)}}
  readings = read(params)
  assert describe(readings["a/kernel"]) == ("auto", (0,), (), False)
  assert describe(readings["a/bias"]) == ("rms", (), (), False)
  blocks = mbf_optax.Layer(block_axes=(0,))
  with pytest.raises(ValueError, match="'a/bias', which is complex"):
    read(params, overrides=[("a/bias", blocks)])


@pytest.mark.parametrize("shape", [(3, 0), (0, 3)])
def test_a_layer_without_blocks_is_refused(shape):
  params = {"kernel": jnp.zeros(shape)}
  with pytest.raises(ValueError, match="no element lies in blocks"):
    read(params, overrides=[("kernel", mbf_optax.Layer(block_axes=(0,)))])


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
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
      assert describe(reading) == ("auto", (0, 1, 2), (), True)
      assert reading.block_size == inputs + 1
    else:
      assert describe(reading) == ("auto", spatial, (), False)


def test_first_matching_override_wins():
  params = shapes_of(nn.Dense(2), (1, 3))
  readings = read(params, overrides=[("kernel", "shared"), ("kernel", "low_rank")])
  assert readings["kernel"].layer.estimator == "shared"


@pytest.mark.parametrize("tree", [np.zeros(3), (np.zeros(2), [np.zeros(4)]), {}, None])
def test_trees_without_matrices_are_elementwise(tree):
  readings = read(tree)
  assert len(readings) == len(jax.tree.leaves(tree))
  assert all(r.layer.estimator == "rms" for r in readings.values())


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("heads", [2, 4])
def test_layers_stacked_on_any_axis(axis, heads):
  """Even where the number of heads is a head's size."""
  scanned = nn.scan(
    Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=3
  )

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return scanned(name="layers")(x, None)[0]

  plain = read(shapes_of(Block(), (2, 5, 4), ()))
  params = shapes_of(Model(), (2, 5, 4))
  readings = read(params)
  assert len(readings) == len(plain)
  for path, alone in plain.items():
    reading = readings[f"layers/{path}"]
    if reading.layer.estimator == "rms":
      continue
    shape = list(reading.shape)
    (stack,) = reading.layer.stack_axes
    assert shape.pop(stack) == 3
    assert stack == axis % len(reading.shape)
    assert tuple(shape) == alone.shape
    kept = [a for a in range(len(reading.shape)) if a != stack]
    assert reading.layer.block_axes == tuple(kept[a] for a in alone.layer.block_axes)
    assert (reading.bias_path is None) == (alone.bias_path is None)
    if reading.bias_path is not None:
      bias = [kept[a] for a in alone.bias_axes]
      bias.insert(axis if axis >= 0 else len(bias), stack)
      assert reading.bias_axes == tuple(bias)


@pytest.mark.parametrize("sizes", [(512, 12, 2048), (6, 6, 6)])
def test_the_bias_of_a_stack_on_the_second_axis(sizes):
  """It is ``(out, layers)``, also where sizes alone cannot tell."""
  inputs, layers, outputs = sizes
  norm = {"scale": jax.ShapeDtypeStruct((inputs, layers), "float32")}
  kernel = jax.ShapeDtypeStruct((inputs, layers, outputs), "float32")
  bias = jax.ShapeDtypeStruct((outputs, layers), "float32")
  params = {"Dense_0": {"kernel": kernel, "bias": bias}, "LayerNorm_0": norm}
  reading = read({"layers": params})["layers/Dense_0/kernel"]
  if inputs != layers:  # else the first axis is as likely, and chosen
    assert describe(reading) == ("auto", (0,), (1,), True)
    assert reading.bias_axes == (2, 1)
    assert (reading.blocks, reading.block_size) == (layers * outputs, inputs + 1)
