"""BDF: the block-diagonal empirical Fisher method with one full block a layer.

The paper's yardstick (Figure 6, Algorithm 5). A layer of ``n`` parameters takes
``2 n^2`` numbers and ``2 n^3`` operations an inverse: for small networks only.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.baselines import common, lapack


class BdfState(NamedTuple):
  """State of :func:`scale_by_bdf`.

  Attributes:
    count: ``()`` int32, number of updates made.
    weight: ``()``, total weight of the moving averages, the bias correction.
    momentum: heavy-ball momentum, like the parameters.
    fisher: by the path of a layer, ``(n, n)`` for its ``n`` parameters.
    inverse: the inverses, like ``fisher``.
  """

  count: jax.Array  # type: ignore[assignment]
  weight: jax.Array
  momentum: optax.Params
  fisher: dict[str, jax.Array]
  inverse: dict[str, jax.Array]


def scale_by_bdf(
  damping: jax.typing.ArrayLike = 3e-3,
  momentum: jax.typing.ArrayLike = 0.9,
  fisher_ema: jax.typing.ArrayLike = 0.9,
  fisher_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 1,
) -> optax.GradientTransformationExtraArgs:
  r"""Scales by the inverse of the damped empirical Fisher matrix of every layer.

  A layer is all arrays of one module, a kernel with its bias, as one vector :math:`g`:

  .. math::
    m &\leftarrow \mu m + g \\
    F &\leftarrow \beta F + (1 - \beta) g g^T \quad\text{every } T_1 \text{ updates} \\
    P &\leftarrow (F / c + \lambda I)^{-1} \quad\text{every } T_2 \text{ updates} \\
    d &= P m

  as MBF does with its mini-blocks, :math:`c` correcting for the start at zero. The
  update's ``example_gradients`` argument, a tree like the gradients with a leading axis
  of examples, makes :math:`F` an average of the examples' :math:`g_n g_n^T` instead:
  the empirical Fisher matrix proper.

  Args:
    damping: :math:`\lambda`.
    momentum: :math:`\mu`.
    fisher_ema: :math:`\beta`.
    fisher_update_period: :math:`T_1`.
    inverse_update_period: :math:`T_2`.

  Returns:
    The transformation.

  References:
    Bahamou, Goldfarb and Ren, 2023, section 3 and appendix 11.4.1.
  """

  def init(params: optax.Params) -> BdfState:
    eyes = {}
    for layer, leaves in _by_layer(common.zeros(params)).items():
      row = _vectors({path: leaf[None] for path, leaf in leaves.items()})
      eyes[layer] = jnp.eye(row.size, dtype=row.dtype)
    return BdfState(
      count=jnp.zeros((), jnp.int32),
      weight=jnp.zeros(()),
      momentum=common.zeros(params),
      fisher=jax.tree.map(jnp.zeros_like, eyes),
      inverse=eyes,
    )

  def update(
    updates: optax.Updates,
    state: BdfState,
    params: optax.Params | None = None,
    *,
    example_gradients: optax.Updates | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, BdfState]:
    del params, extra_args
    if example_gradients is None:
      example_gradients = jax.tree.map(lambda g: g[None], updates)
    velocity = common.heavy_ball(momentum, state.momentum, updates)

    def accumulate(averages: tuple) -> tuple:
      weight, fisher = averages
      weight = common.average(fisher_ema, weight, jnp.ones_like(weight))
      rows = {k: _vectors(leaves) for k, leaves in _by_layer(example_gradients).items()}
      return weight, {
        layer: common.average(
          fisher_ema, old, common.outer(rows[layer].T) / len(rows[layer])
        )
        for layer, old in fisher.items()
      }

    def invert(inverse: dict[str, jax.Array]) -> dict[str, jax.Array]:
      new = {}
      for layer, old in inverse.items():
        matrix = common.damped(common.corrected(fisher[layer], weight), damping)
        new[layer] = common.keep_finite(lapack.inverse(matrix), old)
      return new

    weight, fisher = common.every(
      fisher_update_period, state.count, accumulate, (state.weight, state.fisher)
    )
    inverse = common.every(inverse_update_period, state.count, invert, state.inverse)
    directions = {}
    for layer, leaves in _by_layer(velocity).items():
      row = _vectors({path: leaf[None] for path, leaf in leaves.items()})
      row = jnp.matmul(row, inverse[layer], precision=common.HIGHEST)
      directions |= _split(row[0], leaves)
    count = optax.safe_increment(state.count)
    return common.like(updates, directions), BdfState(
      count, weight, velocity, fisher, inverse
    )

  return optax.GradientTransformationExtraArgs(init, update)


def bdf(
  learning_rate: optax.ScalarOrSchedule,
  damping: jax.typing.ArrayLike = 3e-3,
  momentum: jax.typing.ArrayLike = 0.9,
  fisher_ema: jax.typing.ArrayLike = 0.9,
  fisher_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 1,
  weight_decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """BDF with decoupled weight decay, see :func:`scale_by_bdf`."""
  direction = scale_by_bdf(
    damping, momentum, fisher_ema, fisher_update_period, inverse_update_period
  )
  return common.descend(direction, learning_rate, weight_decay)


def _by_layer(params: optax.Params) -> dict[str, common.Leaves]:
  """The leaves of every module, by the module's path."""
  layers: dict[str, common.Leaves] = {}
  for path, leaf in common.flatten(params).items():
    layers.setdefault(path.rpartition("/")[0], {})[path] = leaf
  return layers


def _vectors(leaves: common.Leaves) -> jax.Array:
  """Leaves with a leading axis of examples as one row vector an example."""
  rows = [common.as_float(leaf).reshape(len(leaf), -1) for leaf in leaves.values()]
  return jnp.concatenate(rows, axis=1)


def _split(vector: jax.Array, like: common.Leaves) -> common.Leaves:
  """The leaves whose elements ``vector`` holds one after another."""
  ends = itertools.accumulate(leaf.size for leaf in like.values())
  parts = jnp.split(vector, list(ends)[:-1])
  return {
    path: part.reshape(leaf.shape)
    for (path, leaf), part in zip(like.items(), parts, strict=True)
  }
