"""Which axes of a mesh divide the blocks of a layer.

A block never spans devices: a layer's statistics are divided along the axes that count
its blocks. Those keep the mesh axes of the parameter; a mesh axis that divides the
parameter inside its blocks moves to an axis that counts them. What does not divide
evenly stays whole.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mbf_optax._partition.layer import Reading

Names = tuple[str, ...]
"""Mesh axes that divide one axis of an array."""


def placed(mesh: Mesh | AbstractMesh, *axes: Names | None) -> Any:
  """A layout by the mesh axes of every axis of an array, leading ones first."""
  return NamedSharding(mesh, PartitionSpec(*(names or None for names in axes)))


def of_array(sharding: NamedSharding, ndim: int) -> list[Names]:
  """Mesh axes of every axis of an array."""
  entries = [(e,) if isinstance(e, str) else tuple(e or ()) for e in sharding.spec]
  return entries + [()] * (ndim - len(entries))


def of_blocks(reading: Reading, sharding: NamedSharding) -> list[Names]:
  """Mesh axes of the axes that count blocks, those of the others moved to them."""
  names, sizes = of_array(sharding, len(reading.shape)), sharding.mesh.shape
  batch = [names[axis] for axis in reading.batch_axes]
  for name in sum((names[axis] for axis in reading.layer.block_axes), ()):
    for axis, count in _largest_first(reading.batch_shape):
      longer = (*batch[axis], name)
      if fitting(longer, count, sizes) == longer:
        batch[axis] = longer
        break
  return batch


def of_shared(
  reading: Reading, sharding: NamedSharding, parts: int, order: int
) -> list[Names]:
  """Mesh axes of shared matrices ``(*stack, parts, order, order)``.

  The parts are divided as far as they go, then the rows.
  """
  names, sizes = of_array(sharding, len(reading.shape)), sharding.mesh.shape
  stack = [names[axis] for axis in reading.layer.stack_axes]
  others = [n for a, n in enumerate(names) if a not in reading.layer.stack_axes]
  inner: Names = sum(others, ())
  over_parts = fitting(inner, parts, sizes)
  left = tuple(name for name in inner if name not in over_parts)
  return [*stack, over_parts, fitting(left, order, sizes)]


def fitting(names: Names, count: int, sizes: dict[str, int]) -> Names:
  """Those of the mesh axes that together divide ``count`` evenly."""
  taken: Names = ()
  for name in names:
    if count % math.prod(sizes[n] for n in (*taken, name)) == 0:
      taken = (*taken, name)
  return taken


def _largest_first(shape: Sequence[int]) -> Iterable[tuple[int, int]]:
  return sorted(enumerate(shape), key=lambda entry: -entry[1])
