"""Shampoo as the paper runs it (Algorithm 3).

Gupta et al.'s method with the improvements of Anil et al.: moving averages of the
statistics and inverse roots by the coupled Newton iteration.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.baselines import common
from benchmarks.baselines.roots import inverse_root

_ROUNDING = 10


class ShampooState(NamedTuple):
  """State of :func:`scale_by_shampoo`.

  Attributes:
    count: ``()`` int32, number of updates made.
    weight: ``()``, total weight of the moving averages, the bias correction.
    momentum: heavy-ball momentum, like the parameters.
    statistics: by parameter path, one ``(n, n)`` matrix for each of its axes.
    roots: the inverse roots, like ``statistics``.
  """

  count: jax.Array  # type: ignore[assignment]
  weight: jax.Array
  momentum: optax.Params
  statistics: dict[str, list[jax.Array]]
  roots: dict[str, list[jax.Array]]


def scale_by_shampoo(
  damping: jax.typing.ArrayLike = 3e-4,
  momentum: jax.typing.ArrayLike = 0.9,
  statistics_ema: jax.typing.ArrayLike = 0.9,
  statistics_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 20,
) -> optax.GradientTransformation:
  r"""Scales every array along every axis by an inverse root of its second moments.

  For a gradient of :math:`k` axes, with :math:`G_{(i)}` its unfolding along axis
  :math:`i` and :math:`m` the momentum,

  .. math::
    m &\leftarrow \mu m + G \\
    H_i &\leftarrow \beta H_i + (1 - \beta) G_{(i)} G_{(i)}^T
      \quad\text{every } T_1 \text{ updates} \\
    R_i &\leftarrow (H_i / c + \epsilon I)^{-1/(2k)}
      \quad\text{every } T_2 \text{ updates} \\
    d &= m \times_1 R_1 \times_2 \cdots \times_k R_k

  where :math:`c` corrects the averages for their start at zero. (The paper starts them
  by a pass over the data instead: put the mean of :func:`moments` into the state, and a
  weight of one.) A convolution's kernel has four axes, a bias one; a
  lone number is left to momentum.

  Args:
    damping: :math:`\epsilon`, added to the statistics; no smaller than ten roundings
      of their norm, below which they are not positive definite as computed.
    momentum: :math:`\mu`.
    statistics_ema: :math:`\beta`.
    statistics_update_period: :math:`T_1`.
    inverse_update_period: :math:`T_2`.

  Returns:
    The transformation.

  References:
    Bahamou, Goldfarb and Ren, 2023, Algorithm 3; Gupta, Koren and Singer, `Shampoo:
    Preconditioned Stochastic Tensor Optimization <https://arxiv.org/abs/1802.09568>`_,
    2018, Algorithm 2 for the exponent.
  """

  def init(params: optax.Params) -> ShampooState:
    leaves = common.flatten(common.zeros(params))
    return ShampooState(
      count=jnp.zeros((), jnp.int32),
      weight=jnp.zeros(()),
      momentum=common.zeros(params),
      statistics={
        path: [jnp.zeros((n, n), leaf.dtype) for n in leaf.shape]
        for path, leaf in leaves.items()
      },
      roots={
        path: [jnp.eye(n, dtype=leaf.dtype) for n in leaf.shape]
        for path, leaf in leaves.items()
      },
    )

  def update(
    updates: optax.Updates, state: ShampooState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, ShampooState]:
    del params
    velocity = common.heavy_ball(momentum, state.momentum, updates)

    def accumulate(averages: tuple) -> tuple:
      weight, statistics = averages
      average = functools.partial(common.average, statistics_ema)
      weight = average(weight, jnp.ones_like(weight))
      return weight, jax.tree.map(average, statistics, moments(updates))

    weight, statistics = common.every(
      statistics_update_period,
      state.count,
      accumulate,
      (state.weight, state.statistics),
    )
    roots = common.every(
      inverse_update_period,
      state.count,
      lambda roots: _new_roots(statistics, roots, weight, damping),
      state.roots,
    )
    directions = {
      path: _precondition(leaf, roots[path])
      for path, leaf in common.flatten(velocity).items()
    }
    count = optax.safe_increment(state.count)
    return common.like(updates, directions), ShampooState(
      count, weight, velocity, statistics, roots
    )

  return optax.GradientTransformation(init, update)


def moments(gradients: optax.Updates) -> dict[str, list[jax.Array]]:
  """Second moments of one gradient along every axis, by parameter path."""
  leaves = common.flatten(jax.tree.map(common.as_float, gradients))
  return {
    path: [common.outer(common.unfold(leaf, axis)) for axis in range(leaf.ndim)]
    for path, leaf in leaves.items()
  }


def shampoo(
  learning_rate: optax.ScalarOrSchedule,
  damping: jax.typing.ArrayLike = 3e-4,
  momentum: jax.typing.ArrayLike = 0.9,
  statistics_ema: jax.typing.ArrayLike = 0.9,
  statistics_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 20,
  weight_decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Shampoo with decoupled weight decay, see :func:`scale_by_shampoo`."""
  direction = scale_by_shampoo(
    damping,
    momentum,
    statistics_ema,
    statistics_update_period,
    inverse_update_period,
  )
  return common.descend(direction, learning_rate, weight_decay)


def _new_roots(
  statistics: dict[str, list[jax.Array]],
  roots: dict[str, list[jax.Array]],
  weight: jax.Array,
  damping: jax.typing.ArrayLike,
) -> dict[str, list[jax.Array]]:
  """Inverse roots of all damped statistics, arrays of equal rank together."""
  new = dict(roots)
  for rank in {len(matrices) for matrices in statistics.values()} - {0}:
    paths = [path for path, matrices in statistics.items() if len(matrices) == rank]
    systems = [
      _damped(common.corrected(matrix, weight), damping)
      for path in paths
      for matrix in statistics[path]
    ]
    found = iter(
      common.by_shape(lambda batch, p=2 * rank: inverse_root(batch, p), systems)
    )
    for path in paths:
      new[path] = [common.keep_finite(next(found), old) for old in roots[path]]
  return new


def _damped(matrix: jax.Array, damping: jax.typing.ArrayLike) -> jax.Array:
  """Damping no smaller than the rounding of the largest eigenvalues."""
  floor = _ROUNDING * jnp.finfo(matrix.dtype).eps * jnp.linalg.norm(matrix)
  return common.damped(matrix, jnp.maximum(jnp.asarray(damping, matrix.dtype), floor))


def _precondition(array: jax.Array, roots: list[jax.Array]) -> jax.Array:
  """The product of ``array`` with every root along the root's axis."""
  for axis, root in enumerate(roots):
    array = common.multiply_along(root, array, axis)
  return array
