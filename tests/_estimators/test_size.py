"""What a layer holds is counted, and refused past a gigabyte."""

import jax
import pytest

import mbf_optax
from mbf_optax._estimators.size import check_size, floats
from mbf_optax._estimators.table import estimator_of
from mbf_optax._partition.bounds import FLOATS
from tests._partition.shapes import array, read


@pytest.mark.parametrize(
  ("layer", "shape", "of_state"),
  [
    (mbf_optax.Layer((0, 1), "full"), (3, 3, 8, 4), 9 * 10 * 32),
    (mbf_optax.Layer((0,), "full"), (100, 7), 2 * 100**2 * 7),
    (mbf_optax.Layer((0,), "shared", block_limit=30), (100, 7), 2 * 4 * 25**2),
    (mbf_optax.Layer((1,), "shared", (0,)), (5, 100, 7), 5 * 2 * 100**2),
    (
      mbf_optax.Layer((0,), "two_sided", block_limit=64),
      (100, 70),
      2 * 2 * (50**2 + 35**2),
    ),
    (mbf_optax.Layer(estimator="rms"), (100, 7), 700),
  ],
)
def test_floats_are_those_of_moments_statistics_and_inverses(layer, shape, of_state):
  overrides = [("kernel", layer)]
  (reading,) = read({"kernel": array(*shape)}, overrides=overrides).values()
  assert floats(estimator_of(reading)) == 2 * reading.elements + of_state


def test_a_bias_is_counted():
  params = {"kernel": array(100, 7), "bias": array(7)}
  (reading,) = read({"Dense_0": params}, dense="shared").values()
  assert floats(estimator_of(reading)) == 2 * 707 + 2 * 101**2


def test_what_is_asked_for_is_refused_past_a_gigabyte():
  wide = {"kernel": array(8192, 1024)}
  for tx in (mbf_optax.mbf, mbf_optax.mbf_adam):
    explicit = tx(1e-3, partition=mbf_optax.flax_partition("full"))
    with pytest.raises(ValueError, match=r"'?kernel.* would hold 54\d\.\d GB, 16,386"):
      jax.eval_shape(explicit.init, wide)
  small = {"kernel": array(512, 16)}
  readings = list(read(small, dense="full").values())
  estimators = [estimator_of(reading) for reading in readings]
  assert floats(estimators[0]) > FLOATS * estimators[0].reading.elements
  check_size(estimators)  # a few megabytes
