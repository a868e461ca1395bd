"""Settings for all tests: checked shapes, strict promotion, reproducible properties.

Every call in the packages below is checked against its annotations, shapes included.
That has to be arranged before anything imports them. Tests of what a user gets for an
argument of another type are marked ``mistyped``.

The library has to run under strict dtype promotion and without rank promotion. The
moving averages of ``optax.scale_by_adam`` do not (they raise a float to the power of
an integer count), so that transformation alone runs under jax's standard rules; tests
that run more of other libraries' code are marked ``promotes``.
"""

import functools
import gc
import os

import hypothesis
import jax
import jaxtyping
import optax
import pytest

from tests import compilation

# Read when jax first compiles, and by the workers that pytest starts.
os.environ["XLA_FLAGS"] = compilation.QUICK

# Tracing makes many objects, and looking through all of them at every 700 new ones, as
# Python does, takes a fifth of the suite's time.
gc.set_threshold(100_000, 50, 50)

# What users call is left out: it answers bad arguments in its own words.
CHECKED = (
  "_linalg",
  "_mesh",
  "_estimators",
  "_partition.blocks",
  "_optimizers.faults",
  "_optimizers.layers",
  "_optimizers.moments",
  "_optimizers.persistence",
  "_optimizers.shrinkage",
)

jaxtyping.install_import_hook(
  [f"mbf_optax.{name}" for name in CHECKED], "beartype.beartype"
)


def _set_promotion(dtypes, ranks):
  """For all threads, as a context is not."""
  jax.config.update("jax_numpy_dtype_promotion", dtypes)
  jax.config.update("jax_numpy_rank_promotion", ranks)


_set_promotion("strict", "raise")

hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")


def _lenient(factory):
  @functools.wraps(factory)
  def build(*args, **kwargs):
    tx = factory(*args, **kwargs)

    def update(updates, state, params=None):
      with jax.numpy_dtype_promotion("standard"):
        return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)

  return build


optax.scale_by_adam = _lenient(optax.scale_by_adam)


@pytest.fixture(autouse=True)
def _promotion(request):
  if request.node.get_closest_marker("promotes"):
    _set_promotion("standard", "allow")
  yield
  _set_promotion("strict", "raise")


@pytest.fixture(autouse=True)
def _types(request):
  unchecked = request.node.get_closest_marker("mistyped") is not None
  jaxtyping.config.update("jaxtyping_disable", unchecked)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
