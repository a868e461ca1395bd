"""The printed summary, and its bytes against the state that is really allocated."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax
from tests import trees


def shapes(dtype, tree=trees.SHAPES):
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    tree,
    is_leaf=lambda node: isinstance(node, tuple),
  )


OPTIMIZERS = {
  "mbf": (mbf_optax.scale_by_mbf, trees.PARTITION, trees.SHAPES),
  "mbf_adam": (
    mbf_optax.scale_by_mbf_adam,
    trees.adam_partition(4),
    trees.ADAM_SHAPES,
  ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
  ("dtype", "inverse_dtype"),
  [(jnp.float32, None), (jnp.bfloat16, None), (jnp.bfloat16, "bfloat16")],
)
def test_bytes_are_those_of_the_state(optimizer, dtype, inverse_dtype):
  scale_by, partition, tree = OPTIMIZERS[optimizer]
  params = shapes(dtype, tree)
  options = {"partition": partition, "inverse_dtype": inverse_dtype}
  summary = mbf_optax.summarize(params, optimizer=optimizer, **options)
  state = jax.eval_shape(scale_by(**options).init, params)
  assert summary.state_bytes == nbytes(state)
  # Counts and bias corrections belong to no layer, nor do persistences.
  others = state._asdict()
  curvature = others.pop("curvature")
  moments = others.pop("momentum", None) or others.pop("adam")[1:]
  of_layers = sum(row.state_bytes for row in summary.layers)
  assert of_layers == nbytes((curvature, moments))
  assert summary.floats_per_parameter == summary.state_bytes / 4 / summary.elements


def nbytes(state):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_share_in_blocks():
  params = {
    "Dense_0": {"kernel": jnp.ones((5, 6)), "bias": jnp.ones(6)},
    "Dense_1": {"kernel": jnp.ones((6, 2))},
    "norm": {"scale": jnp.ones(12)},
  }
  assert mbf_optax.summarize(params, optimizer="mbf").share_in_blocks == 48 / 60
  summary = mbf_optax.summarize(params)  # a head of two outputs is Adam's
  assert summary.share_in_blocks == 36 / 60
  assert summary.elements == 60
  assert "60% of 60 parameters lie in blocks" in str(summary)


def cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_is_markdown_with_a_row_a_layer():
  summary = mbf_optax.summarize(shapes(jnp.float32), trees.PARTITION, "mbf")
  table, caption = str(summary).split("\n\n")
  totals, caption = caption.split("\n")
  assert totals.endswith("floats a parameter.")
  lines = table.splitlines()
  assert len({len(line) for line in lines}) == 1
  titles, rule, *rows, total = map(cells, lines)
  assert {len(row) for row in (titles, rule, *rows, total)} == {len(titles)}
  assert all(re.fullmatch("-{3,}:?", cell) for cell in rule)
  assert [row[0] for row in rows] == [f"`{row.path}`" for row in summary.layers]
  (stacked,) = (row for row in rows if "stack/dense_low_rank/kernel" in row[0])
  assert stacked[1:5] == ["2x6x3", "low_rank+bias x2", "6", "7"]
  assert total[0] == f"{len(summary.layers)} layers"
  blocks = titles.index("blocks")
  assert int(total[blocks]) == sum(int(row[blocks]) for row in rows)
  for module in (mbf_optax, jax, optax):
    assert f"{module.__name__} {module.__version__}" in caption


@pytest.mark.parametrize(
  ("size", "shown"),
  [(124, "992 B"), (125, "1 kB"), (124_990, "1 MB"), (10**18, "8 EB")],
)
def test_bytes_are_readable(size, shown):
  """A vector that is read element by element: two moments in float32."""
  params = {"scale": jax.ShapeDtypeStruct((size,), "float16")}
  (row,) = mbf_optax.summarize(params).layers
  assert row.state_bytes == 8 * size
  assert cells(str(mbf_optax.summarize(params)).splitlines()[2])[5] == shown


def test_operations_are_amortised():
  params = {"kernel": jax.ShapeDtypeStruct((100, 10), "float32")}
  summary = mbf_optax.summarize(params, optimizer="mbf")
  (row,) = summary.layers
  assert (row.apply_flops, row.statistics_flops) == (2 * 100**2 * 10,) * 2
  assert row.inverse_flops == 2 * 100**3
  each, rarely = summary.flops_per_step(1, 1), summary.flops_per_step(10, 100)
  assert each == row.apply_flops + row.statistics_flops + row.inverse_flops
  assert rarely == row.apply_flops + row.statistics_flops / 10 + row.inverse_flops / 100
  # A power is made of five inverses, and there are matrices of the outputs too.
  (both,) = mbf_optax.summarize(params).layers
  assert both.inverse_flops == 5 * 2 * (100**3 + 10**3)


def test_nothing_is_allocated_for_models_that_do_not_fit():
  huge = {"kernel": jax.ShapeDtypeStruct((10**6, 10**6), "float32")}
  assert mbf_optax.summarize(huge).state_bytes > 10**12


def test_empty_tree():
  assert "0 layers" in str(mbf_optax.summarize({}))


def test_numbers_of_python_are_parameters_as_init_takes_them():
  (row,) = mbf_optax.summarize({"scale": 1.0}).layers
  assert (row.path, row.elements) == ("scale", 1)


def test_unknown_optimizer():
  with pytest.raises(ValueError, match="optimizer is 'adam'; use one of 'mbf', 'mbf_a"):
    mbf_optax.summarize({}, optimizer="adam")


def test_init_logs_what_each_layer_became(caplog):
  params = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "Dense_0": {"kernel": jnp.ones((40, 5)), "bias": jnp.ones(5)},
    "norm": {"scale": jnp.ones(())},
  }
  tx = mbf_optax.mbf_adam(0.1)
  with caplog.at_level("INFO", "mbf_optax"):
    state = tx.init(params)
    logged = [(record.name, record.levelname) for record in caplog.records]
    jax.eval_shape(tx.update, params, state, params)
  assert logged == [("mbf_optax", "INFO")] * 4
  assert caplog.messages == [
    "Conv_0/bias (4,): inverse, 4 blocks of 1",
    "Conv_0/kernel (3, 3, 2, 4): full, 8 blocks of 9",
    "Dense_0/kernel (40, 5): two_sided+bias, 5 blocks of 41",
    "norm/scale (): rms, 1 block of 1",
  ]


def test_nothing_is_shown_unasked(capfd):
  """In a process that leaves logging alone; pytest itself has handlers in this one."""
  script = "import mbf_optax, jax.numpy as jnp; mbf_optax.mbf(0.1).init(jnp.ones(2))"
  subprocess.run([sys.executable, "-c", script], check=True, timeout=200)
  assert capfd.readouterr() == ("", "")
