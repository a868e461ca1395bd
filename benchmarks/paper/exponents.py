"""The exponents that ``mbf_adam`` reads off the gradients while it trains."""

from typing import Any

import jax
import numpy as np

import mbf_optax

TITLE = "exponent of "
"""What their metrics are called, before a layer's path."""


def names(state: Any) -> list[str]:
  """Names of the metrics of a state, of its shapes too; none without ``mbf_adam``."""
  return [f"{TITLE}{path}" for found in _states(state) for path in found.foretold]


def measured(state: Any) -> dict[str, np.ndarray]:
  """``1 - sqrt(persistence)`` of every layer, the mean over stacked layers.

  Args:
    state: with any leading axes ``(settings, seeds)``.

  Returns:
    Arrays of those axes by metric.
  """
  exponents = {}
  for found in _states(state):
    for path, share in found.foretold.items():
      kappa = np.clip(share, 0, 1)
      stack = tuple(range(2, kappa.ndim))
      exponents[f"{TITLE}{path}"] = (1 - np.sqrt(kappa)).mean(stack)
  return exponents


def _states(state: Any) -> list[mbf_optax.MbfAdamState]:
  def is_one(node: Any) -> bool:
    return isinstance(node, mbf_optax.MbfAdamState)

  return [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]
