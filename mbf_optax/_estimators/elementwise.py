"""Blocks of one element: norms, embeddings, convolution biases, whatever is unnamed.

Their statistics cost what Adam's do, so they are updated at every step and the
inverse is always fresh. ``"rms"`` divides by the root of the second moment (section
11.1.5 of the paper, for normalisation layers), ``"inverse"`` by the damped second
moment itself (Algorithm 2, for the biases of convolutions).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mbf_optax._estimators import axes
from mbf_optax._estimators.estimator import Norms, Operations, root
from mbf_optax._linalg.groups import Matrices, Results
from mbf_optax._linalg.statistics import Regularizer, Spectrum, Statistics
from mbf_optax._partition.blocks import Pieces, joined
from mbf_optax._partition.layer import Reading
from mbf_optax._tree.shapes import Array, Float

_EPSILON = 1e-8


class ElementwiseState(NamedTuple):
  """State of a layer that is read element by element.

  Attributes:
    second_moment: moving average of ``|g|^2``, real, as blocks of one element.
  """

  second_moment: Float[Array, "1 *shape"]


@dataclasses.dataclass(frozen=True)
class ElementwiseBlocks:
  """What both estimators of single elements have in common.

  Attributes:
    reading: the layer.
  """

  reading: Reading

  @property
  def sides(self) -> tuple[str, ...]:
    return ()

  @property
  def refreshes_with_statistics(self) -> bool:
    return False

  @property
  def rounds_inverse(self) -> bool:
    return False

  @property
  def joins_alike(self) -> bool:
    return False

  def init(self, dtype: jax.typing.DTypeLike) -> ElementwiseState:
    real = jnp.finfo(dtype).dtype
    return ElementwiseState(jnp.zeros((1, *self.reading.shape), real))

  def entry(self, gradient: Pieces) -> Float[Array, "*shape"]:
    return jnp.square(jnp.abs(joined(gradient)))

  def accumulate(
    self,
    state: ElementwiseState,
    entry: Float[Array, "*shape"],
    ema: Float[Array, ""],
  ) -> ElementwiseState:
    square = entry.astype(state.second_moment.dtype)
    return ElementwiseState(ema * state.second_moment + (1 - ema) * square)

  def completed(self, state: ElementwiseState) -> ElementwiseState:
    return state

  def statistics(self, state: ElementwiseState) -> list[Statistics]:
    del state
    return []

  def matrices(
    self, state: ElementwiseState, regularize: Regularizer
  ) -> list[Matrices]:
    del state, regularize
    return []

  def inverses(self, state: ElementwiseState) -> list[Float[Array, "..."]]:
    del state
    return []

  def with_inverses(
    self, state: ElementwiseState, results: list[Results]
  ) -> ElementwiseState:
    del results
    return state

  def norms(self, vectors: Pieces) -> Norms:
    return [jnp.abs(joined(vectors))]

  def condition(
    self, state: ElementwiseState, correction: Float[Array, ""]
  ) -> Float[Array, "*shape"]:
    del correction
    return jnp.ones_like(state.second_moment[0])

  def spread(self, state: ElementwiseState) -> Float[Array, "*shape"]:
    return jnp.ones_like(state.second_moment[0])

  def shardings(self, state: ElementwiseState, sharding: NamedSharding) -> Any:
    del state
    names = axes.of_array(sharding, len(self.reading.shape))
    return ElementwiseState(axes.placed(sharding.mesh, None, *names))

  def _regularized(
    self, state: ElementwiseState, regularize: Regularizer
  ) -> tuple[Float[Array, "1 *shape"], Float[Array, "1 *#shape"]]:
    """Second moments scaled, and what to add to them."""
    means = state.second_moment[0]
    order = np.ones([1] * means.ndim, int)
    spectrum = Spectrum(means, order, 1, self.reading.layer.stack_axes)
    scale, shift = regularize(spectrum)
    return scale[None] * state.second_moment, shift[None]


class RmsBlocks(ElementwiseBlocks):
  """``m / (sqrt(v) + epsilon)``, and zero where no gradient has been seen."""

  def precondition(
    self,
    state: ElementwiseState,
    vectors: Pieces,
    regularize: Regularizer,
  ) -> Pieces:
    moment, _ = self._regularized(state, regularize)
    divisor = jnp.where(moment > 0, root(moment) + _EPSILON, jnp.inf)
    return [vectors[0] / divisor.astype(vectors[0].dtype)]

  def operations(self) -> Operations:
    return Operations(6 * self.reading.blocks, 0, 0)


class InverseBlocks(ElementwiseBlocks):
  """``m / (v + lambda)``, and zero where neither is positive."""

  def precondition(
    self,
    state: ElementwiseState,
    vectors: Pieces,
    regularize: Regularizer,
  ) -> Pieces:
    moment, shift = self._regularized(state, regularize)
    divisor = jnp.where(moment + shift > 0, moment + shift, jnp.inf)
    return [vectors[0] / divisor.astype(vectors[0].dtype)]

  def operations(self) -> Operations:
    return Operations(5 * self.reading.blocks, 0, 0)
