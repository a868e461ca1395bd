"""Where a layout puts the elements of a parameter, by running it on their numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mbf_optax._partition.uses import Use
from mbf_optax._partition.values import Source, Value
from mbf_optax._partition.views import UNKNOWN, of_parameter
from mbf_optax._partition.walk import Walk

SHAPE = (3, 4, 6)


def numbers(*shape):
  return jnp.arange(math.prod(shape)).reshape(shape)


def follow(function, shape=SHAPE, *args, source=Source.PARAMETERS):
  """The outputs of a function of one parameter, and what was recorded of it."""
  walk = Walk()
  jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, "float32"), *args)
  data = [Value(Source.DATA)] * len(args)
  inputs = [Value(source, (of_parameter("w", shape),)), *data]
  return walk.follow(jaxpr, inputs), walk.record


def elements(view, shape, out):
  """The numbers of the elements that a view tells of, -1 where there is none."""
  found = np.full(out, -1)
  for place in np.ndindex(*(span.size for span in view.axes)):
    index = [0] * len(shape)
    for atom in view.stacked:
      index[atom.axis] += atom.start * atom.stride
    for number, span in zip(place, view.axes, strict=True):
      digits = np.unravel_index(number, tuple(atom.size for atom in span.atoms))
      for digit, atom in zip(digits, span.atoms, strict=True):
        if atom in span.real:
          index[atom.axis] += (atom.start + digit) * atom.stride
    target = tuple(n + span.offset for n, span in zip(place, view.axes, strict=True))
    found[target] = np.ravel_multi_index(index, shape)
  return found


def before(w):
  return lax.full((3, 2, 6), -1, w.dtype)


LAYOUTS = {
  "transposed": lambda w: lax.transpose(w, (2, 0, 1)),
  "merged": lambda w: lax.reshape(w, (12, 6)),
  "split": lambda w: lax.reshape(w, (3, 2, 2, 2, 3)),
  "reshaped in another order": lambda w: lax.reshape(w, (24, 3), dimensions=(1, 2, 0)),
  "sliced": lambda w: lax.slice(w, (0, 1, 2), (3, 3, 6)),
  "taken": lambda w: lax.squeeze(lax.slice(w, (0, 2, 0), (3, 3, 6)), (1,)),
  "repeated": lambda w: lax.broadcast_in_dim(w, (3, 2, 4, 6), (0, 2, 3)),
  "padded": lambda w: lax.pad(w, jnp.int32(-1), [(0, 0, 0), (2, 1, 0), (0, 3, 0)]),
  "joined": lambda w: lax.concatenate([before(w), w, before(w)], 1),
  "parted": lambda w: lax.split(w, (1, 2, 1), axis=1),
  "guarded": lambda w: lax.optimization_barrier((w, lax.transpose(w, (1, 0, 2)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_where_the_layout_puts_it(layout):
  function = LAYOUTS[layout]
  outputs = jax.tree.leaves(function(numbers(*SHAPE)))

  def cast(w):  # so that the constants are integers
    return function(lax.convert_element_type(w, jnp.int32))

  values, record = follow(cast)
  assert len(values) == len(outputs)
  for value, output in zip(values, outputs, strict=True):
    (view,) = value.views
    np.testing.assert_array_equal(elements(view, SHAPE, output.shape), output)
  assert not record.uses
  assert not record.lost


@pytest.mark.parametrize(
  ("layout", "starts", "sizes"),
  [
    (lambda w: w[:, :, 1::2], (0, 0, UNKNOWN), (3, 4, 3)),
    (lambda w: lax.dynamic_slice(w, (1, 0, 0), (2, 4, 6)), (UNKNOWN, 0, 0), (2, 4, 6)),
  ],
)
def test_slices_whose_elements_are_not_known(layout, starts, sizes):
  (value,), _ = follow(layout)
  (view,) = value.views
  found = [atom for span in view.axes for atom in span.atoms]
  assert tuple(atom.start for atom in found) == starts
  assert tuple(atom.size for atom in found) == sizes


@pytest.mark.parametrize(
  "layout",
  [
    lambda w: lax.pad(w, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0)]),
    lambda w: lax.pad(w, 0.0, [(0, 0, 0), (-1, 0, 0), (0, 0, 0)]),
    lambda w: lax.pad(w, 0.0, [(0, 0, 0), (0, 0, 0), (0, -1, 0)]),
    lambda w: lax.reshape(lax.slice(w, (0, 0, 0), (3, 4, 5)), (15, 4)),
  ],
)
def test_layouts_that_are_not_followed_are_told(layout):
  (value,), record = follow(layout)
  assert value.views == ()
  assert list(record.lost) == ["w"]


def test_beside_data_a_parameter_is_used_element_by_element():
  def joined(w, x):
    return lax.concatenate([w, x], 0)

  (value,), record = follow(joined, (3, 4), jax.ShapeDtypeStruct((2, 4), "float32"))
  assert value.source is Source.DATA
  assert value.views == ()
  (use,) = record.uses.values()
  assert (use.path, use.use, use.with_data) == ("w", Use("elementwise"), True)


TOKENS = jax.ShapeDtypeStruct((5, 1), "int32")
ONE = jax.ShapeDtypeStruct((1,), "int32")


def gather(collapsed, sizes, offset):
  numbers = lax.GatherDimensionNumbers(offset, collapsed, collapsed)
  return lambda w, indices: lax.gather(w, indices, numbers, sizes)


def test_rows_of_a_table_are_an_embedding():
  lookup = gather((0,), (1, 6), (1,))
  (value,), record = follow(lookup, (9, 6), TOKENS)
  assert (value.source, value.views) == (Source.DATA, ())
  (use,) = record.uses.values()
  assert (use.path, use.use, use.with_data) == ("w", Use("elementwise"), True)


def test_a_row_for_one_index_and_matrices_for_many_are_taken_of_a_stack():
  (value,), record = follow(gather((0,), (1, 6), (0,)), (9, 6), ONE)
  (view,) = value.views
  assert [atom.axis for span in view.axes for atom in span.atoms] == [1]
  assert [atom.axis for atom in view.stacked] == [0]
  (value,), more = follow(gather((1,), (4, 1, 6), (0, 2)), (4, 3, 6), TOKENS)
  (view,) = value.views
  assert value.source is Source.PARAMETERS
  assert [span.real and span.real[0].axis for span in view.axes] == [0, (), 2]
  assert [atom.axis for atom in view.stacked] == [1]
  assert not record.uses
  assert not more.uses


def test_a_gather_along_a_batch_takes_one_of_a_stack_for_each():
  dimensions = lax.GatherDimensionNumbers((1, 2), (1,), (1,), (0,), (0,))
  indices = jax.ShapeDtypeStruct((3, 1), "int32")
  (value,), _ = follow(
    lambda w, i: lax.gather(w, i, dimensions, (1, 1, 5, 6)), (3, 4, 5, 6), indices
  )
  (view,) = value.views
  assert sorted(atom.axis for atom in view.stacked) == [0, 1]


def test_an_empty_parameter_is_not_reshaped():
  (value,), record = follow(lambda w: lax.reshape(w, (24, 0)), (0, 4, 6))
  assert value.views == ()
  assert list(record.lost) == ["w"]


def test_data_that_products_made_are_still_theirs_behind_a_parameter():
  shapes = [jax.ShapeDtypeStruct((n, 4), "float32") for n in (3, 2)]
  jaxpr = jax.make_jaxpr(lambda w, x: lax.concatenate([w, x], 0))(*shapes)
  made = (of_parameter("v", (2, 4)),)
  inputs = [Value(Source.PARAMETERS), Value(Source.DATA, (), made, made)]
  (value,) = Walk().follow(jaxpr, inputs)
  for views in (value.outputs, value.origins):
    assert [(view.path, view.axes[0].offset) for view in views] == [("v", 3)]
