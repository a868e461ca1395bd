"""What is compiled: for which platforms, of which operations, and how much of it."""

import collections
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from mbf_optax._linalg import batches

PLATFORMS = ["cpu", "cuda", "tpu"]
CHOLESKY = ["cusolver_potrf_ffi"]
SHAPES = {
  "conv": {"kernel": (3, 3, 2, 3), "bias": (3,)},
  "full": {"kernel": (4, 3), "bias": (3,)},
  "norm": {"scale": (4,)},
  "other": {"kernel": (8, 6)},
  "wide": {"kernel": (40, 6), "bias": (6,)},
}
PARTITION = mbf_optax.flax_partition(rank=4, overrides=[("other", "low_rank")])


def structs(shapes):
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def exported(tx, platforms):
  """Custom calls whose stability jax does not guarantee are let through."""
  params = structs(SHAPES)
  state = jax.eval_shape(tx.init, params)
  allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CHOLESKY]
  export = jax.export.export(
    jax.jit(tx.update), platforms=platforms, disabled_checks=allowed
  )
  return export(params, state, params)


def custom_calls(text):
  """The targets of the program's custom calls."""
  return re.findall(r"stablehlo\.custom_call\W*@(\w+)", text)


MAKE = {
  "mbf": lambda: mbf_optax.mbf(0.1, partition=PARTITION),
  "mbf_adam": lambda: mbf_optax.mbf_adam(0.1),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_update_lowers_without_custom_calls(name, platform):
  text = exported(MAKE[name](), [platform]).mlir_module()
  assert "stablehlo.while" in text  # the inverses are there
  assert not custom_calls(text)


@pytest.mark.parametrize("name", MAKE)
def test_wide_matrices_are_factorized_by_the_library_of_cuda(name):
  """Cholesky's call does not hang there."""
  text = exported(MAKE[name](), ["cuda"]).mlir_module()
  assert set(custom_calls(text)) == set(CHOLESKY)
  assert "stablehlo.triangular_solve" in text
  sweeps = exported(MAKE[name](), ["cpu"]).mlir_module().count("stablehlo.while")
  assert text.count("stablehlo.while") < sweeps


def loops_on(platform, shapes):
  """Loops in the program of an update of ``mbf_adam``."""
  tx, params = mbf_optax.mbf_adam(0.1), structs(shapes)
  state = jax.eval_shape(tx.init, params)
  lowered = jax.jit(tx.update).trace(params, state, params).lower
  return lowered(lowering_platforms=(platform,)).as_text().count("stablehlo.while")


def test_cuda_inverts_kernels_and_a_few_wide_matrices_without_a_loop(monkeypatch):
  """It would move all matrices for every pivot, and start kernels for every shift."""
  conv, wide = {"conv": SHAPES["conv"]}, {"wide": SHAPES["wide"]}
  larger = {"conv": {"kernel": (5, 5, 2, 3)}}
  assert [loops_on("cpu", s) for s in (conv, wide, larger)] == [1, 4, 1]
  assert [loops_on("cuda", s) for s in (conv, wide, larger)] == [0, 0, 1]
  monkeypatch.setattr(batches, "_FEW", 0)
  assert loops_on("cpu", wide) > 4
  assert loops_on("cuda", wide) == 0
  monkeypatch.setattr(batches, "_FEW_ON_CUDA", 0)
  assert loops_on("cuda", wide) == 1


def branches(name, **periods):
  """Conditionals in the program of an update."""
  text = exported(SCALE_BY[name](**periods), ["cuda"]).mlir_module()
  return text.count("stablehlo.case")


@pytest.mark.parametrize("name", MAKE)
def test_what_is_done_at_every_step_is_no_branch(name):
  """A GPU would wait for the host at it."""
  always = {"curvature_update_period": 1, "inverse_update_period": 1}
  assert branches(name, **always | {"inverse_update_period": 2}) == branches(
    name, **always | {"curvature_update_period": 2}
  )
  assert branches(name, **always) + 1 == branches(
    name, **always | {"inverse_update_period": 2}
  )


SCALE_BY = {"mbf": mbf_optax.scale_by_mbf, "mbf_adam": mbf_optax.scale_by_mbf_adam}


def precisions(name, platform, **options):
  """How often the products of a program have which precision."""
  if name == "mbf":
    options |= {"partition": PARTITION}
  text = exported(SCALE_BY[name](**options), [platform]).mlir_module()
  return collections.Counter(re.findall(r"precision = \[(\w+), \1\]", text))


@pytest.mark.parametrize(
  ("name", "products", "default"),
  [
    ("mbf_adam", 8, "high"),  # statistics and two sides of two layers
    ("mbf", 5, "highest"),  # two of the wide layer, three of the low rank
  ],
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_products_have_the_precision_asked_for_and_inverses_are_in_float32(
  name, products, default, platform
):
  """On an accelerator jax's own default would round to bfloat16."""
  found = precisions(name, platform, precision="high")
  inverses = found["HIGHEST"]
  assert inverses > 0
  assert found == {"HIGH": products, "HIGHEST": inverses}
  highest = precisions(name, platform, precision="highest")
  assert highest == {"HIGHEST": products + inverses}
  given = inspect.signature(SCALE_BY[name]).parameters["precision"].default
  assert given == default


@pytest.mark.parametrize("name", MAKE)
def test_one_program_serves_all_platforms(name):
  assert list(exported(MAKE[name](), PLATFORMS).platforms) == PLATFORMS


def test_linalg_calls_lapack():
  """The control: what would be found if it were there."""
  tx = mbf_optax.mbf(0.1, partition=PARTITION, inverse="linalg")
  calls = custom_calls(exported(tx, ["cpu"]).mlir_module())
  assert any("lapack" in call for call in calls)


def dense_layers(sizes):
  return {f"Dense_{i}": {"kernel": (size, 6)} for i, size in enumerate(sizes)}


def loops(scale_by, sizes):
  """Loops and inverses in the program of an update of dense layers."""
  tx = scale_by()
  params = structs(dense_layers(sizes))
  state = jax.eval_shape(tx.init, params)
  return jax.jit(tx.update).lower(params, state).as_text().count("stablehlo.while")


def operations(tx, count):
  """Operations in the program of an update of so many equal layers."""
  layer = {"kernel": (64, 64), "bias": (64,)}
  params = structs({f"Dense_{i}": layer for i in range(count)})
  state = jax.eval_shape(tx.init, params)
  return jax.jit(tx.update).lower(params, state, params).as_text().count(" = ")


@pytest.mark.parametrize(("name", "most"), [("mbf", 2.0), ("mbf_adam", 4.7)])
def test_a_layer_more_adds_so_many_operations_beside_adams(name, most):
  """They are what a deep network's compile time grows with."""
  with jax.numpy_dtype_promotion("standard"):
    adam = operations(optax.adam(0.1), 4) - operations(optax.adam(0.1), 3)
  tx = getattr(mbf_optax, name)(0.1)
  assert operations(tx, 4) - operations(tx, 3) <= most * adam


@pytest.mark.parametrize("size", [6, 50])
@pytest.mark.parametrize(
  "scale_by", [mbf_optax.scale_by_mbf, mbf_optax.scale_by_mbf_adam]
)
def test_program_follows_the_distinct_sizes_and_not_the_layers(scale_by, size):
  few, many = loops(scale_by, [size] * 3), loops(scale_by, [size] * 12)
  assert many == few > 0
  assert loops(scale_by, [size, 2 * size, 4 * size]) > few


@pytest.mark.slow
def test_forty_mixed_layers_compile_and_step():
  """As many independent inverses as have hung a thread pool by way of LAPACK."""
  rng = np.random.default_rng(0)
  shapes = {
    f"Conv_{i}": {"kernel": (3, 3, 16 + i % 14, 16 + (i + 1) % 14)} for i in range(20)
  }
  shapes |= {
    f"Dense_{i}": {"kernel": (20 + 30 * i, 20), "bias": (20,)} for i in range(20)
  }
  assert len(shapes) == 40
  params = jax.tree.map(
    lambda struct: jnp.asarray(rng.normal(size=struct.shape), struct.dtype),
    structs(shapes),
  )
  tx = mbf_optax.mbf(1e-3, curvature_update_period=1, inverse_update_period=1)
  state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
  for _ in range(2):
    updates, state = update(params, state, params)
  chex.assert_tree_all_finite((updates, state))
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
