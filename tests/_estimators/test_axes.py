"""Which mesh axes divide what, as plain functions of names and sizes."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mbf_optax._estimators import axes
from mbf_optax._partition.layer import Layer, read

MESH = AbstractMesh((2, 4), ("x", "y"))


def sharding(*spec):
  return NamedSharding(MESH, P(*spec))


def test_axes_of_an_array_are_tuples_of_names():
  given = axes.of_array(sharding(("x", "y"), None), 4)
  assert given == [("x", "y"), (), (), ()]
  assert axes.placed(MESH, ("x",), None, ()).spec == P("x", None, None)


@pytest.mark.parametrize(
  ("names", "count", "taken"),
  [
    (("x", "y"), 8, ("x", "y")),
    (("x", "y"), 4, ("x",)),
    (("y", "x"), 4, ("y",)),
    (("x", "y"), 3, ()),
    ((), 8, ()),
  ],
)
def test_what_divides_evenly_is_taken(names, count, taken):
  assert axes.fitting(names, count, MESH.shape) == taken


@pytest.mark.parametrize(
  ("shape", "layer", "spec", "expected"),
  [
    # (in, out): axes that count blocks keep theirs, the others give theirs up.
    ((6, 8), Layer((0,)), (None, "y"), [("y",)]),
    ((6, 8), Layer((0,)), ("y", None), [("y",)]),
    ((6, 8), Layer((0,)), ("x", "y"), [("y", "x")]),
    ((6, 3), Layer((0,)), ("x", None), [()]),
    # A kernel (3, 3, in, out): to the larger of the two.
    ((3, 3, 4, 8), Layer((0, 1)), ("x", None, None, None), [(), ("x",)]),
    ((3, 3, 8, 4), Layer((0, 1)), ("x", None, None, None), [("x",), ()]),
    # Stacked axes come first.
    ((5, 2, 8), Layer((0,), "full", (1,)), (None, "x", "y"), [("x",), ("y",)]),
  ],
)
def test_blocks_are_divided_along_what_counts_them(shape, layer, spec, expected):
  assert axes.of_blocks(read("w", shape, layer), sharding(*spec)) == expected


@pytest.mark.parametrize(
  ("parts", "order", "spec", "expected"),
  [
    (1, 8, ("x", "y"), [(), ("x", "y")]),
    (4, 6, ("x", "y"), [("x",), ()]),
    (8, 6, ("x", "y"), [("x", "y"), ()]),
    (3, 6, ("x", "y"), [(), ("x",)]),
    (1, 7, ("x", "y"), [(), ()]),
  ],
)
def test_shared_matrices_are_divided_by_parts_and_then_by_rows(
  parts, order, spec, expected
):
  reading = read("w", (8, 8), Layer((0,), "shared"))
  assert axes.of_shared(reading, sharding(*spec), parts, order) == expected


def test_stacks_of_shared_matrices_keep_their_axes():
  reading = read("w", (2, 8, 8), Layer((1,), "shared", (0,)))
  given = axes.of_shared(reading, sharding("x", "y", None), 1, 8)
  assert given == [("x",), (), ("y",)]


def test_names_are_axes_of_the_mesh():
  devices = np.array(jax.devices()[:1])
  mesh = jax.sharding.Mesh(devices, ("x",))
  assert axes.placed(mesh, ("x",)).mesh == mesh
