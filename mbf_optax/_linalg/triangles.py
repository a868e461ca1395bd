"""Symmetric matrices stored as their upper triangle, with the batch trailing.

A batch of symmetric ``n x n`` matrices is one array of shape ``(t, *batch)`` with ``t =
n (n + 1) / 2``: a row holds one entry ``(i, j)``, ``i <= j``, of
every matrix. A convolution kernel in HWIO layout already has its blocks laid out
this way (spatial offsets leading, channels contiguous), so nothing is transposed,
and every operation below is elementwise over the contiguous batch.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._tree.shapes import Array, Float, Int

_STRAIGHT = 16
"""Order up to which the elimination is straight-line code on CUDA."""


def packed_size(n: int) -> int:
  """Number of stored entries of a symmetric ``n x n`` matrix."""
  return n * (n + 1) // 2


def unpacked_size(rows: int) -> int:
  """Order ``n`` of the matrices whose triangle has ``rows`` entries."""
  return (math.isqrt(8 * rows + 1) - 1) // 2


@functools.cache
def _triangle(n: int) -> tuple[Int[np.ndarray, "t"], Int[np.ndarray, "t"]]:
  rows, columns = np.triu_indices(n)
  return rows.astype(np.int32), columns.astype(np.int32)


@functools.cache
def positions(n: int) -> Int[np.ndarray, "{n} {n}"]:
  """Table: where entry ``(i, j)`` is stored."""
  rows, columns = _triangle(n)
  table = np.zeros((n, n), np.int32)
  table[rows, columns] = table[columns, rows] = np.arange(len(rows))
  return table


def pack(matrices: Float[Array, "n n *batch"]) -> Float[Array, "t *batch"]:
  """The upper triangles of symmetric matrices."""
  return matrices[_triangle(matrices.shape[0])]


def unpack(packed: Float[Array, "t *batch"]) -> Float[Array, "n n *batch"]:
  """Inverse of :func:`pack`."""
  return packed[positions(unpacked_size(packed.shape[0]))]


def outer(vectors: Float[Array, "n *batch"]) -> Float[Array, "n*(n+1)//2 *batch"]:
  """``v v^T`` of every vector."""
  rows, columns = _triangle(vectors.shape[0])
  return vectors[rows] * vectors[columns]


def diagonal(packed: Float[Array, "t *batch"]) -> Float[Array, "n *batch"]:
  """Diagonals of packed matrices."""
  return packed[np.diagonal(positions(unpacked_size(packed.shape[0])))]


def identity(
  n: int, batch: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> Float[Array, "t ..."]:
  """Packed identity matrices ``(t, *batch)``."""
  rows, columns = _triangle(n)
  ones = jnp.asarray(rows == columns, dtype)
  return jnp.broadcast_to(ones.reshape(-1, *[1] * len(batch)), (len(rows), *batch))


def matvec(
  packed: Float[Array, "t *batch"], vectors: Float[Array, "n *batch"]
) -> Float[Array, "n *batch"]:
  """``A v`` of every packed matrix and vector.

  The sum over columns is unrolled: XLA fuses it into one pass over the stored
  entries, where a reduction over a middle axis runs ten times slower on a CPU.
  """
  table = positions(vectors.shape[0])
  columns = (packed[table[:, j]] * vectors[j : j + 1] for j in range(len(table)))
  return functools.reduce(jnp.add, columns)


def inverse(packed: Any) -> Any:
  """Inverses of packed symmetric positive definite matrices.

  Sweeps one pivot after another (Gauss-Jordan in place), which for positive
  definite matrices needs no row exchanges. A pivot that is not positive makes the
  whole result of that matrix NaN, so that the caller can tell.

  Args:
    packed: ``(t, *batch)``, float32 or float64, or a tree of such arrays
      of one order, which share a program and keep the layouts of their batches.

  Returns:
    The inverses in the same shapes and dtypes.
  """
  first, *others = jax.tree.leaves(packed)
  # On a mesh layers stay apart, and so many copies of the code would be compiled.
  if others or unpacked_size(len(first)) > _STRAIGHT:
    return _in_a_loop(packed)
  return jax.lax.platform_dependent(
    packed, cuda=functools.partial(jax.tree.map, _straight), default=_in_a_loop
  )


def _straight(packed: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
  """:func:`inverse` without a loop, an array for every entry.

  A GPU's time is that of the bytes it moves, and a loop moves all of them for every
  pivot. Up to an order of 12 XLA makes one kernel of this.
  """
  n = unpacked_size(len(packed))
  pairs = list(itertools.combinations_with_replacement(range(n), 2))
  entry = dict(zip(pairs, packed, strict=True))

  def at(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)

  for k in range(n):
    column = [entry[at(i, k)] for i in range(n)]
    reciprocal = _reciprocal(column[k])
    scaled = [element * reciprocal for element in column]
    for i, j in pairs:
      if k not in (i, j):
        entry[i, j] = entry[i, j] - column[i] * scaled[j]
    for i in range(n):
      entry[at(i, k)] = scaled[i]
    entry[k, k] = -reciprocal
  return -jnp.stack([entry[pair] for pair in pairs])


def _reciprocal(pivot: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
  """Not a number where a pivot is not positive."""
  usable = (pivot > 0) & (pivot < jnp.inf)
  return jnp.where(usable, 1 / pivot, jnp.nan)


def _in_a_loop(packed: Any) -> Any:
  """:func:`inverse` as a loop over pivots, whose program is small."""
  n, table = _table(packed)
  rows, columns = _triangle(n)

  def sweep(
    k: Int[Array, ""], swept: Float[Array, "t *batch"]
  ) -> Float[Array, "t *batch"]:
    entries = table[k]
    column = swept[entries]
    reciprocal = _reciprocal(column[k])
    scaled = column * reciprocal[None]
    swept = swept - column[rows] * scaled[columns]
    return swept.at[entries].set(scaled.at[k].set(-reciprocal))

  return jax.tree.map(jnp.negative, _for_each_pivot(n, sweep, packed))


def inverse_factor(packed: Any) -> Any:
  """``L^(-1)`` of packed symmetric positive definite matrices ``A = L L^T``.

  For nearly singular matrices ``L^(-T) (L^(-1) v)`` is ``A^(-1) v`` far more accurately
  than a product with :func:`inverse`. Forward elimination of ``[A I]`` in place: what a
  pivot clears in ``A`` makes room for what it enters in ``I``.

  Args:
    packed: as for :func:`inverse`, which says what a bad pivot does.

  Returns:
    The lower triangles, entry ``(j, i)`` where the matrix has ``(i, j)``, ``i <= j``.
  """
  n, table = _table(packed)
  columns, rows = _triangle(n)
  on_diagonal = np.diagonal(positions(n))

  def eliminate(
    k: Int[Array, ""], array: Float[Array, "t *batch"]
  ) -> Float[Array, "t *batch"]:
    entries = table[k]
    column = array[entries]
    pivot = column[k]
    pivot = jnp.where((pivot > 0) & (pivot < jnp.inf), pivot, jnp.nan)
    is_below = (jnp.arange(n) > k).reshape(-1, *[1] * pivot.ndim)
    factors = jnp.where(is_below, column / pivot[None], 0)
    array = array - factors[rows] * column[columns]
    return array.at[entries].set(jnp.where(is_below, -factors, column).at[k].set(pivot))

  def scale(array: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
    reciprocals = jax.lax.rsqrt(array[on_diagonal])
    return (array * reciprocals[rows]).at[on_diagonal].set(reciprocals)

  return jax.tree.map(scale, _for_each_pivot(n, eliminate, packed))


def lower_matvec(
  packed: Float[Array, "t *batch"], vectors: Float[Array, "n *batch"]
) -> Float[Array, "n *batch"]:
  """``L v`` of packed lower triangles and vectors."""
  return _masked_matvec(packed, vectors, np.tri(len(vectors)))


def transposed_lower_matvec(
  packed: Float[Array, "t *batch"], vectors: Float[Array, "n *batch"]
) -> Float[Array, "n *batch"]:
  """``L^T v`` of packed lower triangles and vectors."""
  return _masked_matvec(packed, vectors, np.tri(len(vectors)).T)


def _masked_matvec(
  packed: Float[Array, "t *batch"],
  vectors: Float[Array, "n *batch"],
  mask: Float[np.ndarray, "n n"],
) -> Float[Array, "n *batch"]:
  """:func:`matvec` with the entries that a mask of zeros and ones leaves."""
  table = positions(len(vectors))
  mask = mask.astype(packed.dtype).reshape(*mask.shape, *[1] * (vectors.ndim - 1))
  columns = (
    packed[table[:, j]] * mask[:, j] * vectors[j : j + 1] for j in range(len(table))
  )
  return functools.reduce(jnp.add, columns)


def _table(packed: Any) -> tuple[int, Int[Array, "n n"]]:
  """Order of the matrices in a tree of packed ones, and where their entries are."""
  n = unpacked_size(jax.tree.leaves(packed)[0].shape[0])
  return n, jnp.asarray(positions(n))


def _for_each_pivot(n: int, step: Callable[[Array, Array], Array], packed: Any) -> Any:
  """A tree of arrays after ``step(k, array)`` for every pivot ``k``."""
  return jax.lax.fori_loop(
    0, n, lambda k, arrays: jax.tree.map(functools.partial(step, k), arrays), packed
  )
