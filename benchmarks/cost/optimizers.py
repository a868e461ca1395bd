"""The optimizers whose steps are timed, MBF in its forms and today's peers."""

from collections.abc import Callable
from typing import NamedTuple

import optax

import mbf_optax
from benchmarks import baselines

_RATE = 1e-5  # small: a timing run must stay finite, not learn


class Timed(NamedTuple):
  """An optimizer and the periods after which its work repeats.

  Attributes:
    tx: the transformation.
    statistics: updates between statistics, 1 for optimizers without them.
    inverse: updates between inverses.
  """

  tx: optax.GradientTransformation
  statistics: int = 1
  inverse: int = 1


def _mbf(statistics: int, inverse: int, dense: str = "auto", rank: int = 16) -> Timed:
  tx = mbf_optax.mbf(
    _RATE,
    damping=1.0,
    curvature_update_period=statistics,
    inverse_update_period=inverse,
    partition=mbf_optax.flax_partition(dense=dense, rank=rank),
  )
  return Timed(tx, statistics, inverse)


def _mbf_adam(
  statistics: int, inverse: int, dense: str = "auto", block_limit: int = 1024
) -> Timed:
  tx = mbf_optax.mbf_adam(
    _RATE,
    curvature_update_period=statistics,
    inverse_update_period=inverse,
    partition=mbf_optax.flax_partition(dense=dense, block_limit=block_limit),
  )
  return Timed(tx, statistics, inverse)


def low_rank(rank: int) -> Timed:
  """MBF whose dense layers keep the last ``rank`` gradients."""
  return _mbf(1, 1, "low_rank", rank)


def muon(head: str | None = None) -> Timed:
  """Muon; Adam has the layer named ``head``."""
  return Timed(baselines.muon(_RATE, head=head))


Factory = Callable[[], Timed]

OPTIMIZERS: dict[str, Factory] = {
  "adam": lambda: Timed(optax.adam(_RATE)),
  "sgd": lambda: Timed(optax.sgd(_RATE)),
  "muon": muon,
  "mbf(1,1)": lambda: _mbf(1, 1),
  "mbf": lambda: _mbf(1, 2),
  "mbf(1,5)": lambda: _mbf(1, 5),
  "mbf(1,20)": lambda: _mbf(1, 20),
  "mbf(10,100)": lambda: _mbf(10, 100),
  "low_rank": lambda: low_rank(16),
  "mbf_adam(1,1)": lambda: _mbf_adam(1, 1),
  "mbf_adam": lambda: _mbf_adam(1, 10),
  "mbf_adam one side": lambda: _mbf_adam(1, 10, "shared", 128),
  "mbf_adam one side, 1024": lambda: _mbf_adam(1, 10, "shared"),
  "mbf_adam(10,100)": lambda: _mbf_adam(10, 100),
}
