"""Grafting in float64 NumPy: MBF's direction at Adam's length, for the oracle."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference import Arrays, Layer, float64, parts


class AdamReference:
  """Adam's direction, before the learning rate."""

  def __init__(self, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    self.b1, self.b2, self.eps = b1, b2, eps
    self.count = 0
    self.mu: Arrays = {}
    self.nu: Arrays = {}

  def update(self, grads: Arrays, curvature_grads: Arrays | None = None) -> Arrays:
    """Takes one step; `curvature_grads` are ignored."""
    del curvature_grads
    self.count += 1
    directions = {}
    for name, g in float64(grads).items():
      self.mu[name] = self.b1 * self.mu.get(name, 0.0) + (1 - self.b1) * g
      self.nu[name] = self.b2 * self.nu.get(name, 0.0) + (1 - self.b2) * g**2
      m_hat = self.mu[name] / (1 - self.b1**self.count)
      v_hat = self.nu[name] / (1 - self.b2**self.count)
      directions[name] = m_hat / (np.sqrt(v_hat) + self.eps)
    return directions


def graft(layers: Sequence[Layer], direction: Arrays, magnitude: Arrays) -> Arrays:
  """Returns d * ||a|| / ||d|| for each layer, but a for what is read elementwise.

  A layer is a kernel with the bias joined to its blocks, or one index of a stack.
  Where all of d is zero it stays zero.
  """
  direction, magnitude = float64(direction), float64(magnitude)
  grafted = {name: np.zeros_like(d) for name, d in direction.items()}
  for part in parts(layers, direction):
    d, a = part.read(direction), part.read(magnitude)
    if part.estimator in ("inverse", "rms"):
      part.write(a, grafted)
    elif np.any(d):
      part.write(d * np.linalg.norm(a) / np.linalg.norm(d), grafted)
  return grafted


@dataclasses.dataclass
class GraftReference:
  """One optimizer's direction at another's length, layer by layer, same gradients.

  Both are objects with the `update` of `MbfReference`.
  """

  layers: Sequence[Layer]
  direction: Any
  magnitude: Any

  def update(self, grads: Arrays, curvature_grads: Arrays | None = None) -> Arrays:
    """Takes one step of both; `curvature_grads` are the direction's alone."""
    direction = self.direction.update(grads, curvature_grads)
    return graft(self.layers, direction, self.magnitude.update(grads))
