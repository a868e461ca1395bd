"""Shapes in annotations: checked in the tests, and nothing of it for users."""

import subprocess
import sys
from typing import get_type_hints

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mbf_optax._estimators.table import estimator_of
from mbf_optax._linalg import products, sweep, triangles
from mbf_optax._partition.layer import Layer, read

FRESH = """
import sys
import jax, optax
before = set(sys.modules)
import mbf_optax
from mbf_optax._linalg import sweep
new = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = new - set(sys.stdlib_module_names) - {"mbf_optax", "jax", "optax", "numpy"}
assert not foreign, foreign
for name in ("jaxtyping", "beartype", "flax", "haiku", "equinox", "scipy"):
  assert name not in sys.modules, name
assert sweep.spd_inverse.__annotations__ == {"matrices": jax.Array, "return": jax.Array}
"""


def test_users_load_jax_and_optax_alone():
  """And the annotations are plain arrays to them."""
  command = [sys.executable, "-c", FRESH]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=600, check=False
  )
  assert done.returncode == 0, done.stderr


KERNEL = read("kernel", (4, 3), Layer((0,)))
WRONG = {
  "rank": lambda: products.apply(jnp.ones((2, 2)), jnp.ones(2)),
  "size": lambda: triangles.matvec(jnp.ones((3, 5)), jnp.ones((2, 6))),
  "square": lambda: sweep.spd_inverse(jnp.ones((2, 3))),
  "dtype": lambda: triangles.outer(jnp.ones((2, 3), int)),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_shape_is_an_error_here(call):
  with pytest.raises(jaxtyping.TypeCheckError):
    call()


@pytest.mark.parametrize(
  "layer",
  [
    Layer((0,)),
    Layer((0,), "shared"),
    Layer((0,), "low_rank", rank=2),
    Layer((), "rms"),
  ],
  ids=lambda layer: layer.estimator,
)
@pytest.mark.parametrize("shape", [(4, 3), (70, 2)])
def test_states_are_as_annotated(layer, shape):
  """A named tuple does not check what is put into it."""
  estimator = estimator_of(read("kernel", shape, layer))
  if not layer.elementwise:
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  else:
    gradient = jnp.ones((1, *shape))
  state = estimator.init(jnp.float32)
  for each in (
    state,
    estimator.accumulate(state, estimator.entry([gradient]), jnp.float32(0.9)),
  ):
    hints = get_type_hints(type(each))
    with jaxtyping.jaxtyped("context"):
      for name, hint in hints.items():
        assert isinstance(getattr(each, name), hint), name
