"""Products ``A A^T``, products with matrices in parts, and diagonals."""

import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mbf_optax._mesh import devices
from mbf_optax._tree.shapes import Array, Float

_STRIPS = 4  # at most, of a symmetric product; each one is a program of its own
_LEAST_ROWS = 576  # of a strip
_TALL = 3  # rows a column beyond which mirroring costs more than it saves

Precision = Literal["default", "high", "highest"]
"""How exactly gradients are multiplied with one another and with matrices."""


def multiply(
  a: Float[Array, "*batch n k"], b: Float[Array, "*batch k m"]
) -> Float[Array, "*batch n m"]:
  """A product in the precision of the optimizer.

  While an update is traced, that is jax's default.
  """
  return jnp.matmul(a, b)


def rows_times(
  rows: Float[Array, "*batch 1 n"], symmetric: Float[Array, "*batch n n"]
) -> Float[Array, "*batch 1 n"]:
  """``v P`` of symmetric matrices ``P``, one row each."""
  return jax.lax.platform_dependent(rows, symmetric, cpu=_twice, default=_summed)


def _summed(
  rows: Float[Array, "*batch 1 n"], symmetric: Float[Array, "*batch n n"]
) -> Float[Array, "*batch 1 n"]:
  return jnp.expand_dims(jnp.sum(symmetric * rows, -1), -2)


def _twice(
  rows: Float[Array, "*batch 1 n"], symmetric: Float[Array, "*batch n n"]
) -> Float[Array, "*batch 1 n"]:
  """A product with ``v`` twice, of which a library has the code.

  A CPU compiles a kernel for every product with one vector. A sum is fused with what it
  is multiplied by, and then takes some twenty times as long as this.
  """
  *batch, _, n = rows.shape
  return multiply(jnp.broadcast_to(rows, (*batch, 2, n)), symmetric)[..., :1, :]


def split_rows(
  columns: Float[Array, "*batch n m"], parts: int, size: int
) -> Float[Array, "*batch {parts} {size} m"]:
  """Cuts rows into parts of one size, the last padded with zeros."""
  spare = parts * size - columns.shape[-2]
  if spare:
    margin = [(0, 0)] * (columns.ndim - 2) + [(0, spare), (0, 0)]
    columns = jnp.pad(columns, margin)
  return columns.reshape(*columns.shape[:-2], parts, size, columns.shape[-1])


def join_rows(
  split: Float[Array, "*batch parts size m"], n: int
) -> Float[Array, "*batch {n} m"]:
  """Inverse of :func:`split_rows`."""
  *leading, parts, size, m = split.shape
  return split.reshape(*leading, parts * size, m)[..., :n, :]


def mean_product(columns: Float[Array, "*batch n m"]) -> Float[Array, "*batch n n"]:
  """``A A^T / m``, for elements whose squares can be added up.

  On a mesh every device computes the rows that it keeps, from whole columns: joining
  strips of a divided product would need communication.
  """
  m = columns.shape[-1]
  if not devices.may_be_divided():
    return symmetric_product(columns) / m
  columns = devices.whole(columns)
  return multiply(columns, columns.mT) / m


def symmetric_product(
  columns: Float[Array, "*batch n m"],
) -> Float[Array, "*batch n n"]:
  """``A A^T``, computing little more than its lower triangle."""

  def strip(start: int, end: int) -> Float[Array, "*batch _ _"]:
    return multiply(columns[..., start:end, :], columns[..., :end, :].mT)

  return _by_strips(strip, *columns.shape[-2:])


def gram(rows: Float[Array, "*batch m n"]) -> Float[Array, "*batch n n"]:
  """``A^T A``: :func:`symmetric_product` of the transposed, which nothing copies."""

  def strip(start: int, end: int) -> Float[Array, "*batch _ _"]:
    return jnp.einsum("...ki,...kj->...ij", rows[..., start:end], rows[..., :end])

  m, n = rows.shape[-2:]
  return _by_strips(strip, n, m)


def _by_strips(
  strip: Callable[[int, int], Float[Array, "*batch _ _"]], n: int, m: int
) -> Float[Array, "*batch n n"]:
  """A symmetric product from strips of its rows, each up to the diagonal.

  What is beyond is mirrored. That saves up to three operations of eight but copies the
  product once more, so with few columns or few rows the whole product is computed.

  Args:
    strip: the rows between two numbers, up to the second one's column.
    n: order of the product.
    m: number of columns of what is multiplied.
  """
  count = min(_STRIPS, -(-n // _LEAST_ROWS))
  if count == 1 or n > _TALL * m:
    return strip(0, n)
  edges = list(itertools.pairwise(n * index // count for index in range(count + 1)))
  strips = [strip(start, end) for start, end in edges]
  rows = []
  for index, (start, end) in enumerate(edges):
    mirrored = [below[..., start:end].mT for below in strips[index + 1 :]]
    rows.append(jnp.concatenate([strips[index], *mirrored], axis=-1))
  return jnp.concatenate(rows, axis=-2)


def apply(
  matrices: Float[Array, "*batch n n"], columns: Float[Array, "*batch n m"]
) -> Float[Array, "*batch n m"]:
  """``P V``; on a mesh only ``V`` travels."""
  return multiply(matrices, devices.whole(columns))


def traces(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
  """Traces, by products with the identity: a diagonal takes XLA a gather."""
  eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
  eye = eye.reshape(*[1] * (matrices.ndim - 2), *eye.shape)
  return jnp.sum(matrices * eye, (-2, -1))


def diagonals(matrices: Float[Array, "*batch n n"]) -> Float[Array, "n *batch"]:
  """Diagonals as block vectors."""
  return jnp.moveaxis(jnp.diagonal(matrices, axis1=-2, axis2=-1), -1, 0)
