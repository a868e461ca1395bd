"""What is known of values: their source, and their views in another layout."""

import jax.numpy as jnp
import pytest

from mbf_optax._partition import values, views
from mbf_optax._partition.values import Source, Value
from tests._partition.traced import array

V, W = (views.of_parameter(path, (4, 6)) for path in "vw")


@pytest.mark.parametrize(
  ("captured", "expected"),
  [
    (array(3, 4), Value(Source.CONSTANT)),
    (array(3, 4, dtype=jnp.int32), Value(Source.DATA)),
    (array(dtype=jnp.int32), Value(Source.CONSTANT, scalar=True)),
    (array(1, 1), Value(Source.CONSTANT, scalar=True)),
    (array(3, dtype=bool), Value(Source.CONSTANT)),
  ],
)
def test_integers_that_a_loss_closes_over_are_data(captured, expected):
  """They are labels or tokens; one number is none."""
  assert values.captured(captured) == expected


def test_the_larger_source_decides():
  weight, token = Value(Source.PARAMETERS), Value(Source.DATA)
  assert values.source_of([Value(), weight]) is Source.PARAMETERS
  assert values.source_of([token, weight]) is Source.DATA
  assert values.source_of([]) is Source.CONSTANT
  assert values.computed(Source.DATA, (1, 1)) == Value(Source.DATA, scalar=True)
  assert values.computed(Source.DATA, (1, 2)) == Value(Source.DATA)


def test_a_value_in_another_layout_keeps_the_views_that_follow():
  value = Value(Source.DATA, (V, W), (W, V), (V,), scalar=True, indicator=True)

  def change(view):
    return None if view.path == "v" else views.transpose(view, (1, 0))

  turned = views.transpose(W, (1, 0))
  expected = Value(Source.DATA, (turned,), (turned,), (), scalar=True, indicator=True)
  assert value.changed(change) == expected


def test_a_value_is_mixed_once_one_of_its_views_met_data():
  assert not Value(views=(V, W)).is_mixed
  assert Value(views=(V, W._replace(events=(1,)))).is_mixed


def test_products_of_values_are_taken_once_and_views_all():
  one, two = Value(views=(V,), outputs=(V,)), Value(views=(V,), outputs=(W, V))
  one, two = one._replace(origins=(W, V)), two._replace(origins=(W,))
  assert values.views_of([one, two]) == (V, V)
  assert values.outputs_of([one, two]) == (V, W)
  assert values.origins_of([one, two]) == (W, V)
