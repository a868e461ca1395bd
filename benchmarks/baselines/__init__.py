"""The optimizers that MBF is compared with, those of the paper and later ones.

Every hyperparameter but an update period may be a traced value, so a whole training can
be mapped over a grid under one ``jit``. States are arrays only.
"""

from benchmarks.baselines.bdf import bdf, scale_by_bdf
from benchmarks.baselines.grafted import (
  kfac_adam,
  mbf_on_adam,
  momentum_adam,
  on_adam,
  shampoo_adam,
)
from benchmarks.baselines.kfac import (
  Factors,
  Linearized,
  capture,
  kfac,
  linearize,
  scale_by_kfac,
)
from benchmarks.baselines.muon import muon
from benchmarks.baselines.shampoo import moments, scale_by_shampoo, shampoo
from benchmarks.baselines.soap import scale_by_soap, soap
from benchmarks.baselines.two_rates import mbf_adam_two_rates

__all__ = [
  "Factors",
  "Linearized",
  "bdf",
  "capture",
  "kfac",
  "kfac_adam",
  "linearize",
  "mbf_adam_two_rates",
  "mbf_on_adam",
  "moments",
  "momentum_adam",
  "muon",
  "on_adam",
  "scale_by_bdf",
  "scale_by_kfac",
  "scale_by_shampoo",
  "scale_by_soap",
  "shampoo",
  "shampoo_adam",
  "soap",
]
