"""What an equation says of a parameter's axes, and what is recorded of it."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from mbf_optax._partition import views
from mbf_optax._partition.uses import (
  Addition,
  Recorder,
  Use,
  ensemble,
  in_convolution,
  in_product,
)
from mbf_optax._partition.views import Atom, Span, View, of_parameter
from tests._partition.traced import RMS, array, mean, read, unread

W = of_parameter("w", (5, 4, 6))


def test_the_use_in_a_product():
  assert in_product(W, [1], [0]) == Use("product", inputs=(1,), stack=(0,))
  assert in_product(W, [2, 1], []) == Use("product", inputs=(1, 2))
  assert in_product(W, [], [0]) == Use("elementwise")
  scanned = views.take_leading(W)
  assert in_product(scanned, [0], []) == Use("product", inputs=(1,), stack=(0,))


def test_an_axis_with_two_roles_divides_a_parameter():
  """As a scan over an axis a part of which is contracted afterwards."""
  halves = views.reshape(of_parameter("w", (4, 5)), (4, 5), (2, 2, 5))
  assert in_product(halves, [1], [0]) == Use("divided")
  assert in_product(halves, [0, 1], []) == Use("product", inputs=(0,))


@pytest.mark.promotes
def test_an_axis_with_two_roles_is_named():
  """Block-diagonal weights whose blocks lie one after another."""

  def model(p, x):
    return jnp.einsum("bgi,gio->bgo", x.reshape(3, 2, 2), p.reshape(2, 2, 5))

  assert read(mean(model), array(4, 5), array(3, 4)) == {"": RMS}
  assert "two roles" in unread(mean(model), array(4, 5), array(3, 4))[""]


CONVOLUTIONS = {  # offsets, strides, dilation of the image
  "convolution": ((3, 3), (1, 1), (1, 1)),
  "one offset": ((1, 1), (2, 2), (1, 1)),
  "its stride": ((4, 4), (4, 4), (1, 1)),
  "not its stride": ((4, 4), (4, 2), (1, 1)),
  "195 offsets": ((13, 15), (1, 1), (1, 1)),
  "196 offsets": ((14, 14), (1, 1), (1, 1)),
  "its dilation": ((2, 2), (1, 1), (2, 2)),
  "not its dilation": ((3, 3), (1, 1), (2, 2)),
}
KINDS = {
  "one offset": "patches",
  "its stride": "patches",
  "196 offsets": "patches",
  "its dilation": "upsampling",
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_use_of_a_kernel(name):
  shape = (*CONVOLUTIONS[name][0], 4, 6)
  use = in_convolution(
    of_parameter("k", shape), shape, numbers(*CONVOLUTIONS[name][1:])
  )
  assert use == Use(KINDS.get(name, "convolution"), inputs=(2,), spatial=(0, 1))


def numbers(strides=(1, 1), dilation=(1, 1), groups=1):
  return {
    "dimension_numbers": SimpleNamespace(rhs_spec=(3, 2, 0, 1)),
    "feature_group_count": groups,
    "window_strides": strides,
    "lhs_dilation": dilation,
  }


def test_kernels_without_an_axis_of_inputs_and_kernels_of_an_ensemble():
  single = of_parameter("k", (3, 3, 8))
  single = views.broadcast(single, (3, 3, 8), (3, 3, 1, 8), (0, 1, 3))
  use = in_convolution(single, (3, 3, 1, 8), numbers(groups=8))
  assert use == Use("convolution", spatial=(0, 1))
  several = views.transpose(of_parameter("k", (5, 3, 3, 4, 6)), (1, 2, 3, 0, 4))
  several = views.reshape(several, (3, 3, 4, 5, 6), (3, 3, 4, 30))
  use = in_convolution(several, (3, 3, 4, 30), numbers(groups=5))
  assert use == Use("convolution", inputs=(3,), spatial=(1, 2), stack=(0,))


def test_groups_of_a_convolution_that_stack_its_kernels():
  five, six, two = Atom(0, 5), Atom(4, 6), Atom(4, 2)
  assert ensemble([five, six], 5) == {0}
  assert ensemble([five, six], 10) == {0}
  assert ensemble([five, six], 3) == set()
  assert ensemble([Atom(1, 3), five, six], 15) == {0, 1}
  assert ensemble([Atom(1, 5), five, six], 5) == {1}
  assert ensemble([two._replace(stride=3), Atom(4, 3)], 2) == set()
  assert ensemble([six], 6) == set()


def output(path, *shape, step):
  return of_parameter(path, shape)._replace(step=step)


def test_a_bias_is_of_the_latest_product_that_it_fits():
  record = Recorder()
  bias = of_parameter("b", (3, 6))._replace(events=(7,))
  outputs = [output(path, 3, 6, step=step) for path, step in (("v", 1), ("w", 2))]
  outputs.append(output("wider", 3, 8, step=3))
  outputs.append(output("b", 3, 6, step=4))
  assert record.add_bias(bias, outputs, 9)
  assert record.additions == [Addition("b", "w", ((0, 0), (1, 1)), 9)]
  assert record.withdrawn == {7}
  assert not record.add_bias(bias, outputs[2:], 9)


def test_layers_of_an_ensemble_meet_those_before_them():
  origins = [of_parameter("first", (8, 5)), of_parameter("narrow", (8, 4))]
  origins = [views.transpose(view, (1, 0)) for view in origins]
  record = Recorder()
  record.stack_alike(Span((Atom(2, 5),)), 0, origins)
  record.stack_alike(Span(()), 0, origins)
  record.stack_alike(Span((Atom(2, 8),)), 1, [W])
  halves = Span((Atom(2, 2, stride=3),))
  record.stack_alike(halves, 0, [View("split", (halves,))])
  assert record.stacks == {("first", 1)}


def test_what_was_seen_first_is_what_is_said_of_a_lost_parameter():
  record, other = Recorder(lost={"w": "sort"}), Recorder(lost={"w": "fft", "v": "fft"})
  other.uses, other.withdrawn, other.stacks = {3: "use"}, {4}, {("w", 1)}
  other.additions = ["addition"]
  record.merge(other)
  assert record == Recorder(
    {3: "use"}, {4}, ["addition"], {("w", 1)}, {"w": "sort", "v": "fft"}
  )
