"""The Mini-Block Fisher method for optax."""

from mbf_optax.alias import mbf, mbf_adam
from mbf_optax.checkpoint import check_state
from mbf_optax.grafting import GraftState, graft
from mbf_optax.layers import Layer, Partition, Reading
from mbf_optax.metrics import LayerMetrics, metrics
from mbf_optax.presets import equinox_partition, flax_partition, haiku_partition
from mbf_optax.sampling import sample_bernoulli, sample_gaussian, sample_labels
from mbf_optax.summary import summarize
from mbf_optax.transform import MbfState, scale_by_mbf
from mbf_optax.version import __version__
from mbf_optax.warm_start import warm_start

__all__ = [
  "GraftState",
  "Layer",
  "LayerMetrics",
  "MbfState",
  "Partition",
  "Reading",
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
  "summarize",
  "warm_start",
]
