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


def shapes(dtype):
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    trees.SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


@pytest.mark.parametrize("inverse_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_are_those_of_the_state(dtype, inverse_dtype):
  options = {"partition": trees.PARTITION, "inverse_dtype": inverse_dtype}
  summary = mbf_optax.summarize(shapes(dtype), **options)
  params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes(dtype))
  state = mbf_optax.scale_by_mbf(**options).init(params)
  assert summary.state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  scalars = 3 * 4  # the counter and the two weights belong to no layer
  assert sum(row.state_bytes for row in summary.layers) == summary.state_bytes - scalars


def cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_is_markdown_with_a_row_a_layer():
  summary = mbf_optax.summarize(shapes(jnp.float32), trees.PARTITION)
  table, caption = str(summary).split("\n\n")
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
  """A vector of float32 that is read element by element: momentum and statistics."""
  params = {"scale": jax.ShapeDtypeStruct((size,), "float16")}
  (row,) = mbf_optax.summarize(params).layers
  assert row.state_bytes == 8 * size
  assert cells(str(mbf_optax.summarize(params)).splitlines()[2])[5] == shown


def test_operations_are_amortised():
  summary = mbf_optax.summarize({"kernel": jax.ShapeDtypeStruct((100, 10), "float32")})
  (row,) = summary.layers
  assert (row.apply_flops, row.statistics_flops) == (2 * 100**2 * 10,) * 2
  assert row.inverse_flops == 2 * 100**3
  each, rarely = summary.flops_per_step(1, 1), summary.flops_per_step(10, 100)
  assert each == row.apply_flops + row.statistics_flops + row.inverse_flops
  assert rarely == row.apply_flops + row.statistics_flops / 10 + row.inverse_flops / 100


def test_nothing_is_allocated_for_models_that_do_not_fit():
  huge = {"kernel": jax.ShapeDtypeStruct((10**6, 10**6), "float32")}
  assert mbf_optax.summarize(huge).state_bytes > 10**12


def test_empty_tree():
  assert "0 layers" in str(mbf_optax.summarize({}))


def test_init_logs_what_each_layer_became(caplog):
  params = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "Dense_0": {"kernel": jnp.ones((40, 3)), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones(())},
  }
  tx = mbf_optax.mbf_adam(0.1)
  with caplog.at_level("INFO", "mbf_optax"):
    state = tx.init(params)
    logged = [(record.name, record.levelname) for record in caplog.records]
    jax.eval_shape(tx.update, params, state, params)
    mbf_optax.summarize(params)
  assert logged == [("mbf_optax", "INFO")] * 4
  assert caplog.messages == [
    "Conv_0/bias (4,): inverse, 4 blocks of 1",
    "Conv_0/kernel (3, 3, 2, 4): full, 8 blocks of 9",
    "Dense_0/kernel (40, 3): shared+bias, 3 blocks of 41",
    "norm/scale (): rms, 1 block of 1",
  ]


def test_nothing_is_shown_unasked(capfd):
  """In a process that leaves logging alone; pytest itself has handlers in this one."""
  script = "import mbf_optax, jax.numpy as jnp; mbf_optax.mbf(0.1).init(jnp.ones(2))"
  subprocess.run([sys.executable, "-c", script], check=True, timeout=200)
  assert capfd.readouterr() == ("", "")
