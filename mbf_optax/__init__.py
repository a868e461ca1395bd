"""The Mini-Block Fisher method for optax."""

from mbf_optax._estimators.elementwise import ElementwiseState
from mbf_optax._estimators.full import BlockState
from mbf_optax._estimators.low_rank import LowRankState
from mbf_optax._estimators.two_sided import TwoSidedState
from mbf_optax._optimizers.adam import scale_by_mbf_adam
from mbf_optax._optimizers.adam_state import MbfAdamState
from mbf_optax._optimizers.aliases import mbf, mbf_adam
from mbf_optax._optimizers.fisher import MbfState, scale_by_mbf
from mbf_optax._optimizers.grafting import GraftState, graft
from mbf_optax._optimizers.sampling import (
  sample_bernoulli,
  sample_gaussian,
  sample_labels,
)
from mbf_optax._optimizers.warming import warm_start
from mbf_optax._partition.layer import Layer, Partition, Reading
from mbf_optax._partition.presets import (
  equinox_partition,
  flax_partition,
  haiku_partition,
)
from mbf_optax._partition.traced import traced_partition
from mbf_optax._reports.layer_metrics import LayerMetrics, metrics
from mbf_optax._reports.restored import check_state
from mbf_optax._reports.summary import LayerSummary, Summary, summarize
from mbf_optax.version import __version__

__all__ = [
  "BlockState",
  "ElementwiseState",
  "GraftState",
  "Layer",
  "LayerMetrics",
  "LayerSummary",
  "LowRankState",
  "MbfAdamState",
  "MbfState",
  "Partition",
  "Reading",
  "Summary",
  "TwoSidedState",
  "__version__",
  "check_state",
  "equinox_partition",
  "flax_partition",
  "graft",
  "haiku_partition",
  "mbf",
  "mbf_adam",
  "metrics",
  "sample_bernoulli",
  "sample_gaussian",
  "sample_labels",
  "scale_by_mbf",
  "scale_by_mbf_adam",
  "summarize",
  "traced_partition",
  "warm_start",
]
