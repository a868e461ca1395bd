"""Nothing is Adam in silence."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import mbf_optax
from mbf_optax._partition.unknown import MostlyElementwise
from tests._partition.shapes import array


def init(tree, **options):
  return jax.eval_shape(mbf_optax.mbf_adam(1e-3, **options).init, tree)


def unknown(size):
  """Arrays that no name or shape explains."""
  return {f"theta_{i}": array(4, 5, size) for i in range(5)}


def test_most_of_a_model_unknown():
  with pytest.warns(MostlyElementwise, match="100% of the elements") as caught:
    init(unknown(6))
  (warning,) = caught
  assert warning.filename == __file__  # where the optimizer's init was called
  text = str(warning.message)
  assert "'theta_0', 'theta_1', 'theta_2' and others" in text
  assert "traced_partition(loss, params, batch)" in text
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    init(unknown(6))  # once for a tree
  with pytest.warns(MostlyElementwise):
    init(unknown(7))


def test_the_preset_that_knows_them_is_named():
  tree = {"conv": {"kernel": array(3, 11, 8), "bias": array(8)}}
  with pytest.warns(MostlyElementwise, match=r"partition=flax_partition\(\)"):
    init(tree, partition=mbf_optax.haiku_partition())


@pytest.mark.parametrize(
  "tree",
  [
    {"wte": array(1000, 64), "w": array(8, 8), "b": array(8)},
    {"pos": array(1, 50, 8)},
    {"kernel": jnp.zeros((3, 4), jnp.complex64)},
    {"phi": array(3, 4, 5, dtype="complex64")},
    {"a": array(50), "b": array(60)},
    {},
    None,
    {**unknown(3), "kernel": array(100, 100)},
  ],
)
def test_what_is_known_gives_no_warning(tree):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    init(tree)


def test_what_is_asked_for_gives_no_warning():
  partition = mbf_optax.flax_partition(overrides=[("theta", "rms")])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    init(unknown(9), partition=partition)
