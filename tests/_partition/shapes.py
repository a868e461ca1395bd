"""Trees of shapes, and readings in few words."""

import jax

import mbf_optax


def array(*shape, dtype="float32"):
  return jax.ShapeDtypeStruct(shape, dtype)


def read(tree, preset=mbf_optax.flax_partition, **options):
  """Readings by path."""
  return {reading.path: reading for reading in preset(**options)(tree)}


def axes(reading):
  """Block axes, stacked axes, and whether the bias is in the blocks."""
  layer = reading.layer
  return layer.block_axes, layer.stack_axes, reading.bias_path is not None
