"""Inverses of symmetric positive definite matrices in plain XLA operations.

LAPACK's batched custom calls can dead-lock XLA's CPU thread pool (several jaxlib
releases hang when one program inverts a dozen independent batches), and they do
not exist in every backend's lowering. The block sweep below is matrix products
inside one loop: it lowers for CPU, GPU and TPU alike, and the size of its program
does not depend on the size of the matrices.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._mesh import devices
from mbf_optax._tree.shapes import Array, Float, Int

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_BORDER = 8
_PIVOT = 16  # rows of a pivot block that are factorized at a time
_BY_ROWS = 24  # order up to which a pivot block is factorized as a whole
_LARGE = 320  # order beyond which wide panels pay, and sparing a mirror image


def panel_width(n: int) -> int:
  """Columns that the block sweep eliminates at a time for order ``n``.

  A remainder is a second program to compile, so it is a divisor of ``n`` where there is
  one nearby.
  """
  if n <= 32:
    return 8
  if n <= _LARGE:
    return _divisor(n, range(_PIVOT, _BY_ROWS + 1))
  most = 128 if n <= 2048 else 256
  return _divisor(n, range(most, most // 2, -1))


def _divisor(n: int, candidates: Sequence[int]) -> int:
  """The first of the candidates that divides ``n``, or the first of all."""
  return next((width for width in candidates if n % width == 0), candidates[0])


def padded_order(n: int) -> int:
  """The largest order that ``n`` is inverted with, padded, in one batch.

  Steps are coarse, so that few distinct orders have to be compiled. There is one at
  every multiple of the step, and one at eight more: layers of 256 or 1024 inputs have
  blocks of 257 or 1025 elements, and work grows with the cube of the order.
  """
  step = 8 if n <= 32 else 32 if n <= 128 else 64
  whole = -(-n // step) * step
  border = whole - step + _BORDER
  return border if n <= border else whole


def pad(
  matrices: Float[Array, "*batch n n"], order: int
) -> Float[Array, "*batch {order} {order}"]:
  """Extends matrices by an identity block."""
  n = matrices.shape[-1]
  if n == order:
    return matrices
  margin = [(0, 0)] * (matrices.ndim - 2) + [(0, order - n)] * 2
  tail = jnp.arange(order) >= n
  block = jnp.diag(tail.astype(matrices.dtype))
  return jnp.pad(matrices, margin) + block.reshape(*[1] * len(margin[2:]), order, order)


def spd_inverse(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  """Inverses of symmetric positive definite matrices.

  A block sweep with Cholesky pivots: after the panels ``K`` have been swept the
  working matrix holds ``-inv(A_KK)``, ``-inv(A_KK) A_KR`` and the Schur complement
  ``A_RR - A_RK inv(A_KK) A_KR``; sweeping the next panel, whose pivot block is
  ``D = L L^T``, subtracts ``V V^T`` with ``V = A[:, panel] L^(-T)`` everywhere.
  All the work is in that product: ``2 n^3`` operations, a quarter less for large
  matrices, one of whose quadrants is mirrored from another. Matrices that a mesh
  divides by rows stay divided, and every device computes its own rows.

  Args:
    matrices: float32 or float64, ``n`` of 1 to thousands.

  Returns:
    The inverses in the same dtype. A matrix that is not numerically
    positive definite, or not finite, gives NaN instead of an error.

  Examples:
    >>> import jax.numpy as jnp
    >>> from mbf_optax._linalg.sweep import spd_inverse
    >>> inverse = spd_inverse(jnp.array([[2.0, 1.0], [1.0, 1.0]]))
    >>> print(inverse.round(4) + 0.0)
    [[ 1. -1.]
     [-1.  2.]]
  """
  n = matrices.shape[-1]
  width = min(panel_width(n), n)
  steps, border = divmod(n, width)
  spared = n > _LARGE and not devices.may_be_divided()
  corner = border + steps // 2 * width if spared else 0
  swept = _sweep_panel(matrices, 0, border, corner) if border else matrices
  swept = jax.lax.fori_loop(
    0,
    steps,
    lambda step, swept: _sweep_panel(swept, border + step * width, width, corner),
    swept,
  )
  if corner:
    swept = swept.at[..., :corner, corner:].set(swept[..., corner:, :corner].mT)
  return -swept


def _sweep_panel(
  swept: Float[Array, "*batch n n"],
  offset: Int[Array, ""] | int,
  width: int,
  corner: int,
) -> Float[Array, "*batch n n"]:
  """Sweeps the ``width`` columns from ``offset`` on.

  With ``I`` in the rows of the pivot block, ``V`` has ``L^(-T)`` there, and ``V V^T``
  is minus everything that the panel's rows and columns become: one subtraction sweeps
  the whole matrix. The first ``corner`` rows are right up to column ``corner`` alone:
  what is beyond mirrors the rows below. No slice is set, for the reason in
  :func:`_take`.
  """
  n = swept.shape[-1]
  columns = _take(swept, offset, width, -1)
  if corner:
    mirrored = _take(swept[..., :corner], offset, width, -2).mT
    upper = jnp.where(
      jnp.greater_equal(offset, corner), mirrored, columns[..., :corner, :]
    )
    columns = jnp.concatenate([upper, columns[..., corner:, :]], axis=-2)
  columns = devices.whole(columns)
  pivot = jax.lax.dynamic_slice_in_dim(columns, offset, width, columns.ndim - 2)
  within = (jnp.arange(n) - offset)[:, None]
  is_other = (within < 0) | (within >= width)
  eye = (within == jnp.arange(width)[None]).astype(swept.dtype)
  columns = jnp.where(_over(is_other, columns), columns, _over(eye, columns))
  scaled = devices.whole(_matmul(columns, _inverse_cholesky(pivot).mT))
  others = jnp.where(_over(is_other & is_other.T, swept), swept, 0)
  return _subtract_product(others, scaled, corner)


def _over(matrix: Array, like: Float[Array, "*shape"]) -> Array:
  """One matrix for every matrix of a batch."""
  return jnp.broadcast_to(matrix, like.shape)


def _take(
  swept: Float[Array, "*batch rows columns"],
  offset: Int[Array, ""] | int,
  width: int,
  axis: Literal[-1, -2],
) -> Float[Array, "*batch _ _"]:
  """The next ``width`` columns, or rows.

  XLA gathers a matrix that a mesh divides by rows before it slices it, or updates a
  slice of it. So there columns are taken one by one, and they alone travel.
  """
  if not devices.may_be_divided():
    return jax.lax.dynamic_slice_in_dim(swept, offset, width, swept.ndim + axis)
  indices = offset + jnp.arange(width)
  return jnp.take(swept, indices, axis=axis, mode="clip")


def _subtract_product(
  swept: Float[Array, "*batch n n"], scaled: Float[Array, "*batch n width"], corner: int
) -> Float[Array, "*batch n n"]:
  """``swept - scaled scaled^T``, but for what is beyond ``corner`` in both axes."""
  if not corner:
    return swept - _matmul(scaled, scaled.mT)
  upper, lower = scaled[..., :corner, :], scaled[..., corner:, :]
  below = swept[..., corner:, :] - _matmul(lower, scaled.mT)
  square = swept[..., :corner, :corner] - _matmul(upper, upper.mT)
  swept = swept.at[..., corner:, :].set(below)
  return swept.at[..., :corner, :corner].set(square)


def _inverse_cholesky(
  matrices: Float[Array, "*batch b b"],
) -> Float[Array, "*batch b b"]:
  """``L^(-1)`` of ``A = L L^T``, by forward elimination of ``[A I]``.

  A pivot that is not positive becomes NaN, which spreads to the whole inverse.
  """
  order = matrices.shape[-1]
  if order <= _BY_ROWS:
    return _by_rows(matrices)
  n = -(-order // _PIVOT) * _PIVOT
  augmented = _beside_identity(pad(matrices, n))
  augmented = jax.lax.fori_loop(0, n // _PIVOT, _eliminate_rows, augmented)
  return augmented[..., :order, n : n + order]


def _eliminate_rows(
  step: Int[Array, ""], augmented: Float[Array, "*batch b 2*b"]
) -> Float[Array, "*batch b 2*b"]:
  """Scales the next rows of ``[A I]`` and clears the columns below their pivot."""
  offset, axis = step * _PIVOT, augmented.ndim - 2
  rows = jax.lax.dynamic_slice_in_dim(augmented, offset, _PIVOT, axis)
  factor = _by_rows(jax.lax.dynamic_slice_in_dim(rows, offset, _PIVOT, axis + 1))
  rows = _matmul(factor, rows)
  columns = jax.lax.dynamic_slice_in_dim(augmented, offset, _PIVOT, axis + 1)
  is_below = (jnp.arange(augmented.shape[axis]) >= offset + _PIVOT)[:, None]
  below = jnp.where(is_below, _matmul(columns, factor.mT), 0)
  augmented = augmented - _matmul(below, rows)
  return jax.lax.dynamic_update_slice_in_dim(augmented, rows, offset, axis)


def _by_rows(matrices: Float[Array, "*batch b b"]) -> Float[Array, "*batch b b"]:
  """:func:`_inverse_cholesky` row by row, with the batch innermost for speed.

  In place: what a pivot clears in ``A`` makes room for what it enters in ``I``. With
  one for the pivot in its row, a product of a column and that row is all of both.
  """
  rows = jnp.arange(matrices.shape[-1]).reshape(-1, *[1] * (matrices.ndim - 1))
  columns = jnp.swapaxes(rows, 0, 1)
  array = jnp.moveaxis(matrices, (-2, -1), (0, 1))

  def eliminate(
    k: Int[Array, ""], array: Float[Array, "b b *batch"]
  ) -> Float[Array, "b b *batch"]:
    row = jax.lax.dynamic_slice_in_dim(array, k, 1, 0)
    column = jax.lax.dynamic_slice_in_dim(array, k, 1, 1)
    pivot = jax.lax.dynamic_slice_in_dim(row, k, 1, 1)
    factors = jnp.where(_over(rows > k, column), column / pivot, 0)
    row = jnp.where(_over(columns == k, row), 1, row)
    cleared = jnp.where(_over((rows > k) & (columns == k), array), 0, array)
    return cleared - factors * row

  array = jax.lax.fori_loop(0, len(rows), eliminate, array)
  below, eye = (
    jnp.asarray(mask, array.dtype).reshape(*mask.shape, *[1] * (array.ndim - 2))
    for mask in (np.tri(len(rows), k=-1), np.eye(len(rows)))
  )
  pivots = jnp.sum(array * eye, 1, keepdims=True)
  scales = jax.lax.rsqrt(jnp.where(pivots > 0, pivots, jnp.nan))
  return jnp.moveaxis((array * below + eye) * scales, (0, 1), (-2, -1))


def _beside_identity(
  matrices: Float[Array, "*batch b b"],
) -> Float[Array, "*batch b 2*b"]:
  """``[A I]`` of every matrix ``A``."""
  eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
  return jnp.concatenate([matrices, jnp.broadcast_to(eye, matrices.shape)], axis=-1)
