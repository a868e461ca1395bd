"""What every kind of mini-block can do: the seam between optimizers and layers.

An estimator belongs to one layer. It works on block vectors ``(n, *batch)``, the batch
being ``(*stack, *counted)``, with a joined bias as a piece of its own, and on its own
state, a named tuple of arrays. Making matrices and taking back their inverses are two
calls. Between them, matrices of equal order from all layers are inverted in one batch
(:mod:`mbf_optax._linalg.batches`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mbf_optax._linalg.groups import Matrices, Results
from mbf_optax._linalg.statistics import Regularizer, Statistics
from mbf_optax._partition.blocks import Pieces
from mbf_optax._partition.layer import Reading
from mbf_optax._tree.shapes import Array, Float

INPUTS, OUTPUTS = "inputs", "outputs"

Norms = Sequence[Float[Array, "_ *#batch"]]
"""They broadcast against pieces of block vectors."""


class Operations(NamedTuple):
  """Floating-point operations of a layer, for a multiply and an add two.

  Attributes:
    apply: of every step.
    statistics: of an update of the statistics.
    inverse: of inverting its matrices once.
  """

  apply: int
  statistics: int
  inverse: int


@runtime_checkable
class Estimator(Protocol):
  """Statistics of one layer's mini-blocks, and what follows from them.

  Attributes:
    reading: the layer.
    sides: for every matrix of a block in the order of :meth:`matrices`, whether it is
      one of the ``"inputs"`` or of the ``"outputs"``. Empty for elementwise blocks.
    refreshes_with_statistics: whether new statistics need a new inverse at once.
    rounds_inverse: whether its inverse may be kept in half precision.
    joins_alike: whether layers that differ in their names alone may be copied into one
      array, which costs little beside what is computed of them.
  """

  @property
  def reading(self) -> Reading:
    """See the class."""

  @property
  def sides(self) -> tuple[str, ...]:
    """See the class."""

  @property
  def refreshes_with_statistics(self) -> bool:
    """See the class."""

  @property
  def rounds_inverse(self) -> bool:
    """See the class."""

  @property
  def joins_alike(self) -> bool:
    """See the class."""

  def init(self, dtype: jax.typing.DTypeLike) -> Any:
    """State before the first gradient; its inverses are identities."""

  def entry(self, gradient: Pieces) -> Any:
    """What a gradient adds to the moving average."""

  def accumulate(self, state: Any, entry: Any, ema: Float[Array, ""]) -> Any:
    """State with one more entry in its moving average."""

  def completed(self, state: Any) -> Any:
    """State as after a complete moving average, whose weights sum to one."""

  def statistics(self, state: Any) -> list[Statistics]:
    """What matrices are made of, one entry a side; ``mbf_adam`` takes their powers."""

  def matrices(self, state: Any, regularize: Regularizer) -> list[Matrices]:
    """Positive definite matrices, one entry a side; ``mbf`` inverts these."""

  def inverses(self, state: Any) -> list[Float[Array, "..."]]:
    """The inverses (or powers) in use, one entry a side."""

  def with_inverses(self, state: Any, results: list[Results]) -> Any:
    """State with the inverses (or powers) that were computed of its matrices."""

  def precondition(
    self, state: Any, vectors: Pieces, regularize: Regularizer
  ) -> Pieces:
    """``P v`` for block vectors.

    Elementwise blocks, whose inverse is never kept, regularize their statistics here.
    """

  def norms(self, vectors: Pieces) -> Norms:
    """Norms of what gets one length each, for every piece."""

  def condition(self, state: Any, correction: Float[Array, ""]) -> Float[Array, "..."]:
    """Estimated condition number of every regularized matrix, from its inverse."""

  def spread(self, state: Any) -> Float[Array, "..."]:
    """Largest over smallest diagonal element of every kept inverse or power."""

  def shardings(self, state: Any, sharding: NamedSharding) -> Any:
    """Where the arrays of a state lie, given the layout of the weight array."""

  def operations(self) -> Operations:
    """Floating-point operations of the layer."""


@dataclasses.dataclass(frozen=True)
class Blocks:
  """What estimators with one matrix a block have in common.

  Attributes:
    reading: the layer.
  """

  reading: Reading

  @property
  def sides(self) -> tuple[str, ...]:
    return (INPUTS,)

  @property
  def refreshes_with_statistics(self) -> bool:
    return False

  @property
  def rounds_inverse(self) -> bool:
    return True

  @property
  def joins_alike(self) -> bool:
    return False

  def completed(self, state: Any) -> Any:
    return state

  def statistics(self, state: Any) -> list[Statistics]:
    raise NotImplementedError(f"mbf_adam has no {self.reading.layer.estimator}.")

  def matrices(self, state: Any, regularize: Regularizer) -> list[Matrices]:
    return [
      Matrices(s.statistics, s.is_packed, *regularize(s.spectrum), s.order)
      for s in self.statistics(state)
    ]

  def inverses(self, state: Any) -> list[Float[Array, "..."]]:
    return [state.inverse]

  def norms(self, vectors: Pieces) -> Norms:
    return [lengths(vectors, (0,))] * len(vectors)


def inner(
  one: Pieces, other: Pieces, axes: tuple[int, ...], keepdims: bool = False
) -> Float[Array, "*shape"]:
  """Inner products over ``axes``, of vectors that lie in pieces along the first axis.

  Their range is that of Adam's second moment, which is made of the same squares.
  """
  products = [
    jnp.sum(a * b, axes, keepdims=keepdims) for a, b in zip(one, other, strict=True)
  ]
  return functools.reduce(jnp.add, products)


def lengths(pieces: Pieces, axes: tuple[int, ...]) -> Float[Array, "*#shape"]:
  """Euclidean norms over ``axes``, which stay with size one."""
  return root(inner(pieces, pieces, axes, keepdims=True))


def root(squares: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """Norms of their squares: of zero 1e-19, where a root has no finite derivative."""
  return jnp.sqrt(jnp.maximum(squares, float(jnp.finfo(jnp.float32).tiny)))


def spread_of(diagonals: Float[Array, "n *batch"]) -> Float[Array, "*batch"]:
  """Largest over smallest of positive diagonals."""
  return jnp.max(diagonals, axis=0) / jnp.min(diagonals, axis=0)


def condition_number(
  statistics: Float[Array, "n *batch"], inverse: Float[Array, "#n *batch"]
) -> Float[Array, "*batch"]:
  r"""Condition numbers of ``A = G + lambda I``, from diagonals.

  The condition number is :math:`\lambda_{max}(A) \lambda_{max}(P)` with ``P`` the
  inverse. :math:`1 + \lambda_{max}(G) \lambda_{max}(P)` is at most one above it, and
  needs no ``lambda``. The trace of ``G`` is up to ``n`` times too large for
  :math:`\lambda_{max}(G)`, the largest diagonal element of ``P`` up to ``n`` times too
  small for :math:`\lambda_{max}(P)`.

  Args:
    statistics: diagonals of ``G``.
    inverse: diagonals of ``P``, or the largest element of each.
  """
  return 1 + jnp.sum(statistics, axis=0) * jnp.max(inverse, axis=0)
