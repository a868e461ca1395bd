"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.baselines import common, lapack

Matrices = dict[str, list[jax.Array]]


class SoapState(NamedTuple):
  """State of :func:`scale_by_soap`.

  Attributes:
    count: ``()`` int32, number of updates made, the first, which is zero, included.
    momentum: moving average of the gradients, like the parameters.
    second_moment: by parameter path, the moving average of the squared gradients in
      the eigenbasis.
    statistics: by parameter path, one ``(n, n)`` matrix for every rotated axis.
    basis: the eigenvectors, in columns, of ``statistics``.
  """

  count: jax.Array  # type: ignore[assignment]
  momentum: optax.Params
  second_moment: common.Leaves
  statistics: Matrices
  basis: Matrices


def scale_by_soap(
  b1: jax.typing.ArrayLike = 0.95,
  b2: jax.typing.ArrayLike = 0.95,
  eps: jax.typing.ArrayLike = 1e-8,
  frequency: jax.typing.ArrayLike = 10,
  max_order: int = 10_000,
) -> optax.GradientTransformation:
  r"""Adam in slowly rotating coordinates.

  For an array of two or more axes with gradient :math:`G`, bases :math:`Q_i` and
  :math:`\tilde X = X \times_i Q_i^T` (``X`` in the eigenbasis), with Adam's corrections
  for the start at zero,

  .. math::
    M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
    V &\leftarrow \beta_2 V + (1 - \beta_2) \tilde G^2 \\
    d &= \tilde M / (\sqrt V + \epsilon) \times_i Q_i \\
    H_i &\leftarrow \beta_2 H_i + (1 - \beta_2) G_{(i)} G_{(i)}^T \\
    Q_i &\leftarrow \operatorname{qr}(H_i Q_i)
      \quad\text{every } \mathtt{frequency} \text{ updates}

  :math:`V` is kept when the basis is renewed. Before the power iteration the columns of
  :math:`Q_i` are sorted by their estimated eigenvalues, and :math:`V` with them. The
  first gradient only starts :math:`H_i` and, by ``eigh``, the basis: its update is
  zero. Arrays of fewer axes move as under Adam.

  Args:
    b1: :math:`\beta_1`.
    b2: :math:`\beta_2`.
    eps: :math:`\epsilon`.
    frequency: updates between power iterations.
    max_order: longest axis that is rotated.

  Returns:
    The transformation.

  References:
    Vyas et al., `SOAP: Improving and Stabilizing Shampoo using Adam
    <https://arxiv.org/abs/2409.11321>`_, 2024, Algorithms 3 and 4, with the order of
    operations, the sorting and the defaults of the authors' implementation.
  """

  def init(params: optax.Params) -> SoapState:
    leaves = common.flatten(common.zeros(params))
    eyes = {
      path: [
        jnp.eye(leaf.shape[axis], dtype=leaf.dtype)
        for axis in _rotated_axes(leaf, max_order)
      ]
      for path, leaf in leaves.items()
    }
    return SoapState(
      count=jnp.zeros((), jnp.int32),
      momentum=common.zeros(params),
      second_moment=leaves,
      statistics=jax.tree.map(jnp.zeros_like, eyes),
      basis=eyes,
    )

  def update(
    updates: optax.Updates, state: SoapState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, SoapState]:
    del params
    gradients = common.flatten(jax.tree.map(common.as_float, updates))
    axes = {path: _rotated_axes(leaf, max_order) for path, leaf in gradients.items()}
    count = state.count
    started = count > 0

    momentum, second_moment, directions = common.flatten(state.momentum), {}, {}
    for path, gradient in gradients.items():
      basis = state.basis[path]
      rotated = _rotate(gradient, basis, axes[path])
      first = common.average(b1, momentum[path], gradient)
      second = common.average(b2, state.second_moment[path], rotated**2)
      scaled = _corrected(_rotate(first, basis, axes[path]), b1, count) / (
        jnp.sqrt(_corrected(second, b2, count)) + jnp.asarray(eps, second.dtype)
      )
      direction = _rotate(scaled, [q.T for q in basis], axes[path])
      directions[path] = jnp.where(started, direction, 0)
      momentum[path] = jnp.where(started, first, momentum[path])
      second_moment[path] = jnp.where(started, second, state.second_moment[path])

    statistics = {
      path: [
        common.average(b2, old, common.outer(common.unfold(gradients[path], axis)))
        for axis, old in zip(axes[path], matrices, strict=True)
      ]
      for path, matrices in state.statistics.items()
    }

    def power_iteration(rotation: tuple) -> tuple:
      bases, moments = dict(rotation[0]), dict(rotation[1])
      for path, matrices in statistics.items():
        bases[path], moments[path] = _power_iteration(
          matrices, bases[path], moments[path], axes[path]
        )
      return bases, moments

    def start(rotation: tuple) -> tuple:
      return jax.tree.map(lambda h: lapack.eigh(h)[1], statistics), rotation[1]

    def renew(rotation: tuple) -> tuple:
      return jax.lax.cond(started, power_iteration, start, rotation)

    basis, second_moment = common.every(
      frequency, count, renew, (state.basis, second_moment)
    )
    basis = jax.tree.map(common.keep_finite, basis, state.basis)
    return common.like(updates, directions), SoapState(
      count=optax.safe_increment(count),
      momentum=common.unflatten(state.momentum, momentum),
      second_moment=second_moment,
      statistics=statistics,
      basis=basis,
    )

  return optax.GradientTransformation(init, update)


def soap(
  learning_rate: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.95,
  b2: jax.typing.ArrayLike = 0.95,
  eps: jax.typing.ArrayLike = 1e-8,
  frequency: jax.typing.ArrayLike = 10,
  weight_decay: jax.typing.ArrayLike = 0.0,
  max_order: int = 10_000,
) -> optax.GradientTransformationExtraArgs:
  """SOAP with decoupled weight decay, see :func:`scale_by_soap`."""
  direction = scale_by_soap(b1, b2, eps, frequency, max_order)
  return common.descend(direction, learning_rate, weight_decay)


def _rotated_axes(leaf: jax.Array, max_order: int) -> list[int]:
  if leaf.ndim < 2:
    return []
  return [axis for axis, n in enumerate(leaf.shape) if 1 < n <= max_order]


def _rotate(array: jax.Array, bases: list[jax.Array], axes: list[int]) -> jax.Array:
  """``array`` times ``Q^T`` along every rotated axis."""
  for axis, basis in zip(axes, bases, strict=True):
    array = common.multiply_along(basis.T, array, axis)
  return array


def _corrected(
  average: jax.Array, decay: jax.typing.ArrayLike, count: jax.Array
) -> jax.Array:
  """Adam's correction after ``count`` entries, one at least."""
  entries = jnp.maximum(count, 1).astype(average.dtype)
  return average / (1 - jnp.asarray(decay, average.dtype) ** entries)


def _power_iteration(
  statistics: list[jax.Array],
  bases: list[jax.Array],
  second_moment: jax.Array,
  axes: list[int],
) -> tuple[list[jax.Array], jax.Array]:
  """One step of orthogonal iteration for every axis, in sorted columns."""
  renewed = []
  for matrix, basis, axis in zip(statistics, bases, axes, strict=True):
    product = jnp.matmul(matrix, basis, precision=common.HIGHEST)
    order = jnp.argsort(-jnp.sum(basis * product, 0))
    renewed.append(lapack.orthogonal(product[:, order]))
    second_moment = jnp.take(second_moment, order, axis)
  return renewed, second_moment
