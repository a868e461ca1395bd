"""Statistics of one layer's mini-blocks, and how they become positive definite.

Matrices of many layers are joined before anything is computed of them, so what is known
of each comes along as NumPy arrays: a deep network would otherwise spend its compile
time on numbers of single layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg import products, triangles
from mbf_optax._tree.shapes import Array, Float, Int

_FLOOR = 1e-30  # of a mean of squares

Stored = Float[Array, "t *batch"] | Float[Array, "*batch n n"]
"""Symmetric matrices: packed triangles, or whole matrices."""


class Spectrum(NamedTuple):
  """What is known of statistics before they are made positive definite.

  Attributes:
    mean_diagonal: of every matrix, bias correction not yet applied.
    order: number of rows without padding, of the rank of ``batch``.
    sharers: number of gradient vectors that one step adds to a matrix, likewise.
    stack_axes: which axes of ``batch`` stack independent layers.
    is_corrected: whether the bias correction is in the statistics already.
  """

  mean_diagonal: Float[Array, "*batch"]
  order: Int[np.ndarray, "*#batch"]
  sharers: Int[np.ndarray, "*#batch"] | int
  stack_axes: tuple[int, ...]
  is_corrected: bool = False


Regularizer = Callable[
  [Spectrum], tuple[Float[Array, "*#batch"], Float[Array, "*#batch"]]
]
"""From what is known of statistics ``G`` to ``scale`` and ``shift`` of
``scale G + shift I``; both broadcast against the batch and have its rank."""


def reciprocal(mean: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """``1 / x`` of a mean of squares, and 1e30 where it is zero.

  The derivative of a plain quotient has the square of ``x`` below it, which underflows
  in float32 where gradients are around 1e-10.
  """
  root = jnp.sqrt(mean + _FLOOR)
  return 1 / root / root


def unregularized(
  spectrum: Spectrum,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Leaves statistics as they are."""
  ones = jnp.ones_like(spectrum.mean_diagonal)
  return ones, jnp.zeros_like(ones)


class Statistics(NamedTuple):
  """Moving averages of outer products, of one layer or of several as one batch.

  Attributes:
    statistics: ``G``.
    is_packed: whether they are packed triangles.
    order: as in :class:`Spectrum`.
    sharers: likewise.
    stack_axes: likewise.
  """

  statistics: Stored
  is_packed: bool
  order: Int[np.ndarray, "*#batch"]
  sharers: Int[np.ndarray, "*#batch"] | int
  stack_axes: tuple[int, ...]

  @property
  def as_factor(self) -> bool:
    """As of :class:`mbf_optax._linalg.groups.Matrices`."""
    return False

  @property
  def batch(self) -> tuple[int, ...]:
    """Shape of the batch."""
    return batch_of(self.statistics, self.is_packed)

  @property
  def spectrum(self) -> Spectrum:
    """What a regularizer is told of them."""
    if self.is_packed:
      traces = jnp.sum(triangles.diagonal(self.statistics), axis=0)
    else:
      traces = products.traces(self.statistics)
    means = traces / jnp.asarray(self.order, traces.dtype)
    return Spectrum(means, self.order, self.sharers, self.stack_axes)


def batch_of(statistics: Stored, is_packed: bool) -> tuple[int, ...]:
  """Shape of the batch of matrices."""
  return statistics.shape[1:] if is_packed else statistics.shape[:-2]


def joint(
  values: list[Int[np.ndarray, "..."]], batches: list[tuple[int, ...]]
) -> Int[np.ndarray, "*batch"]:
  """A number for every matrix, of one layer or of several as one flat batch."""
  full = [np.broadcast_to(v, batch) for v, batch in zip(values, batches, strict=True)]
  if len(full) == 1:
    return full[0]
  return np.concatenate([value.reshape(-1) for value in full])
