"""What the baselines share: trees, moving averages, periods, the last two stages."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

HIGHEST = jax.lax.Precision.HIGHEST

Leaves = dict[str, Any]
"""Leaves of a tree by paths such as ``"Dense_0/kernel"``."""


def flatten(tree: Any) -> Leaves:
  """The leaves of a tree by their paths, in the tree's order."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_path(keys): leaf for keys, leaf in pairs}


def unflatten(like: Any, leaves: Leaves) -> Any:
  """A tree of the structure of ``like`` with the leaves of ``leaves`` in it."""
  return jax.tree_util.tree_map_with_path(lambda keys, _: leaves[_path(keys)], like)


def _path(keys: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def as_float(array: jax.Array) -> jax.Array:
  """``array`` in float32, or in its own dtype where that is wider."""
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def every(
  period: jax.typing.ArrayLike,
  count: jax.Array,
  branch: Callable[[Any], Any],
  state: Any,
) -> Any:
  """``branch(state)`` at every ``period``-th count, else the state as it is.

  The condition depends on the count and the period alone, so it stays a condition
  where whole trainings are mapped over a grid of other hyperparameters.
  """
  due = count % jnp.asarray(period, count.dtype) == 0
  return jax.lax.cond(due, branch, lambda same: same, state)


def average(ema: jax.typing.ArrayLike, old: jax.Array, new: jax.Array) -> jax.Array:
  """The moving average ``ema * old + (1 - ema) * new``."""
  ema = jnp.asarray(ema, old.dtype)
  return ema * old + (1 - ema) * new


def outer(matrix: jax.Array) -> jax.Array:
  """``A A^T`` in full precision."""
  return jnp.matmul(matrix, matrix.mT, precision=HIGHEST)


def corrected(ema: jax.Array, weight: jax.Array) -> jax.Array:
  """A moving average from a zero start over the total weight of its entries."""
  return ema / weight.astype(ema.dtype)


def damped(matrix: jax.Array, damping: jax.typing.ArrayLike) -> jax.Array:
  """``A + damping * I``."""
  eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
  return matrix + jnp.asarray(damping, matrix.dtype) * eye


def keep_finite(new: jax.Array, old: jax.Array) -> jax.Array:
  """``new``, or ``old`` where the matrix ``new`` has an element that is not finite."""
  return jnp.where(jnp.isfinite(new).all((-2, -1), keepdims=True), new, old)


def zeros(params: optax.Params) -> optax.Params:
  """Zeros like the parameters, float32 or wider."""
  return jax.tree.map(lambda p: jnp.zeros_like(as_float(p)), params)


def heavy_ball(
  momentum: jax.typing.ArrayLike, velocity: optax.Updates, gradients: optax.Updates
) -> optax.Updates:
  """``m <- momentum * m + g``, the momentum of all the paper's methods."""
  return jax.tree.map(
    lambda m, g: jnp.asarray(momentum, m.dtype) * m + g.astype(m.dtype),
    velocity,
    gradients,
  )


def unfold(array: jax.Array, axis: int) -> jax.Array:
  """``array`` as a matrix whose rows run over ``axis``."""
  return jnp.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def multiply_along(matrix: jax.Array, array: jax.Array, axis: int) -> jax.Array:
  """The product of ``matrix`` with ``array`` along ``axis``."""
  product = jnp.tensordot(matrix, array, (1, axis), precision=HIGHEST)
  return jnp.moveaxis(product, 0, axis)


def like(updates: optax.Updates, directions: Leaves) -> optax.Updates:
  """The directions as a tree of the structure and dtypes of ``updates``."""
  directions = unflatten(updates, directions)
  return jax.tree.map(lambda d, g: d.astype(g.dtype), directions, updates)


def by_shape(
  function: Callable[[jax.Array], jax.Array], matrices: Sequence[jax.Array]
) -> list[jax.Array]:
  """``function`` of every matrix, called once for all matrices of one shape."""
  groups: dict[tuple[int, ...], list[int]] = {}
  for index, matrix in enumerate(matrices):
    groups.setdefault(matrix.shape, []).append(index)
  results = {}
  for members in groups.values():
    batch = function(jnp.stack([matrices[index] for index in members]))
    results.update(zip(members, batch, strict=True))
  return [results[index] for index in range(len(matrices))]


def descend(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: jax.typing.ArrayLike,
) -> optax.GradientTransformationExtraArgs:
  """The update ``-learning_rate * (direction + weight_decay * parameters)``."""
  return optax.chain(
    direction,
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
