"""Which class serves a reading: the one place that lists the estimators."""

from collections.abc import Callable

from mbf_optax._estimators.elementwise import InverseBlocks, RmsBlocks
from mbf_optax._estimators.estimator import Estimator
from mbf_optax._estimators.full import PACKED_LIMIT, MatrixBlocks, PackedBlocks
from mbf_optax._estimators.low_rank import LowRankBlocks
from mbf_optax._estimators.shared import SharedBlocks
from mbf_optax._estimators.two_sided import TwoSidedBlocks
from mbf_optax._partition.layer import Reading


def _full(reading: Reading) -> Estimator:
  is_small = reading.block_size <= PACKED_LIMIT
  return PackedBlocks(reading) if is_small else MatrixBlocks(reading)


_CLASSES: dict[str, Callable[[Reading], Estimator]] = {
  "full": _full,
  "shared": SharedBlocks,
  "two_sided": TwoSidedBlocks,
  "low_rank": LowRankBlocks,
  "rms": RmsBlocks,
  "inverse": InverseBlocks,
}


def estimator_of(reading: Reading) -> Estimator:
  """The estimator of a layer whose reading names one (``"auto"`` does not)."""
  return _CLASSES[reading.layer.estimator](reading)
