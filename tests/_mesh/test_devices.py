"""What is known of a layout, with one device; ``test_layout.py`` has eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mbf_optax._mesh import devices


def mesh(kind):
  return jax.make_mesh((1,), ("x",), axis_types=(kind,), devices=jax.devices()[:1])


def test_without_a_mesh_nothing_happens():
  array = jnp.ones((2, 2))
  assert devices.sharding_of(array) is None
  assert devices.sharding_of(jax.ShapeDtypeStruct((2,), jnp.float32)) is None
  assert devices.whole(array) is array
  assert not devices.may_be_divided()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_layouts_of_concrete_arrays_are_known(kind):
  layout = NamedSharding(mesh(kind), PartitionSpec("x"))
  assert devices.sharding_of(jax.device_put(jnp.ones(2), layout)) == layout


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_layouts_of_traced_arrays_are_known_if_explicit(kind):
  found = []

  def trace(array):
    found.append(devices.sharding_of(array))
    return array

  with jax.set_mesh(mesh(kind)):
    layout = NamedSharding(mesh(kind), PartitionSpec("x"))
    jax.eval_shape(trace, jax.device_put(jnp.ones(2), layout))
  (sharding,) = found
  if kind == AxisType.Auto:
    assert sharding is None
  else:
    assert sharding.spec == PartitionSpec("x")


def test_hyperparameters_made_under_an_explicit_mesh_enter_automatic_sharding():
  explicit = mesh(AxisType.Explicit)
  with jax.set_mesh(explicit):
    value = jnp.asarray(0.5)

    @jax.jit
    def double(x):
      step = jax.sharding.auto_axes(
        lambda x: x * devices.replicated(value, jnp.float32),
        out_sharding=NamedSharding(explicit, PartitionSpec("x")),
      )
      return step(x)

    given = jax.device_put(jnp.ones(2), NamedSharding(explicit, PartitionSpec("x")))
    np.testing.assert_array_equal(double(given), 0.5)


def test_numbers_become_arrays_of_the_dtype():
  for value in (1, 0.5, np.float64(0.5), jnp.int32(3)):
    assert devices.replicated(value, jnp.float32).dtype == jnp.float32
