"""Grafting: one transformation's direction at another's length, layer by layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbf_optax import tree
from mbf_optax.estimators import beside
from mbf_optax.layers import Partition, Reading, as_float
from mbf_optax.presets import flax_partition


class GraftState(NamedTuple):
  """State of :func:`graft`: the states of the two transformations."""

  direction: optax.OptState
  magnitude: optax.OptState


def graft(
  direction: optax.GradientTransformation,
  magnitude: optax.GradientTransformation,
  partition: Partition | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Takes every layer's direction from one transformation, its length from another.

  Both run on the same gradients. With :math:`d` and :math:`a` their updates of a layer,
  a kernel together with the bias that is part of its blocks, the layer's update is

  .. math:: d \, \lVert a \rVert / \lVert d \rVert

  and zero where :math:`d` is. Parameters that the partition reads element by element
  take :math:`a` itself. Layers stacked on a leading axis are scaled one by one.

  Args:
    direction: transformation that gives the direction, :func:`scale_by_mbf` say.
    magnitude: transformation that gives the length, ``optax.scale_by_adam()`` say. Like
      the direction it must not have flipped the gradient's sign yet.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.

  Returns:
    The transformation; extra arguments reach both parts. Both parts, their states and
    the norms are float32 or wider, updates come in the gradients' dtype. The magnitude
    sees zeros in place of elements that are not finite or overflow when squared.

  Examples:
    >>> import jax.numpy as jnp, optax, mbf_optax
    >>> tx = mbf_optax.graft(optax.identity(), optax.scale(0.1))
    >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> print(updates["Dense_0"]["kernel"])
    [[0.1 0.1]
     [0.1 0.1]]

  References:
    Agarwal, Anil, Hazan, Koren and Zhang, `Disentangling Adaptive Gradient Methods from
    Learning Rates <https://arxiv.org/abs/2002.11803>`_, 2020.
  """
  partition = flax_partition() if partition is None else partition
  direction = optax.with_extra_args_support(direction)
  magnitude = optax.with_extra_args_support(magnitude)

  def init(params: optax.Params) -> GraftState:
    wide = _wide(params)
    return GraftState(direction.init(wide), magnitude.init(wide))

  def update(
    updates: optax.Updates,
    state: GraftState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, GraftState]:
    wide = _wide(updates)
    along, direction_state = direction.update(
      wide, state.direction, params, **extra_args
    )
    sized, magnitude_state = magnitude.update(
      _without_faults(wide), state.magnitude, params, **extra_args
    )
    along_leaves, leaves = tree.flatten(along), tree.flatten(sized)
    for reading in partition(updates):
      if not reading.layer.elementwise:
        leaves |= _resized(reading, along_leaves, leaves)
    grafted = tree.unflatten(updates, leaves)
    grafted = jax.tree.map(lambda d, g: d.astype(g.dtype), grafted, updates)
    return grafted, GraftState(direction_state, magnitude_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _wide(updates: optax.Updates) -> optax.Updates:
  """In float32 or wider.

  float16 holds neither a direction of any length nor squares of small gradients, and
  averages in bfloat16 stand still.
  """
  return jax.tree.map(as_float, updates)


def _without_faults(updates: optax.Updates) -> optax.Updates:
  """With zeros for what cannot be squared: it would stay in Adam's moments for good."""
  return jax.tree.map(
    lambda leaf: jnp.where(jnp.isfinite(jnp.square(jnp.abs(leaf))), leaf, 0), updates
  )


def _resized(reading: Reading, along: tree.Leaves, sized: tree.Leaves) -> tree.Leaves:
  """The layer's leaves of ``along`` scaled to the norm of those of ``sized``."""
  along = {path: as_float(along[path]) for path in reading.paths}
  sized = {path: as_float(sized[path]) for path in reading.paths}
  stacked = reading.layer.stack_axes
  unit, length = _norm(along, stacked), _norm(sized, stacked)
  return {path: _rescale(leaf, unit, length) for path, leaf in along.items()}


class _Norm(NamedTuple):
  """A norm as ``largest * relative``, which neither overflows nor underflows."""

  largest: jax.Array
  relative: jax.Array


def _norm(leaves: tree.Leaves, stack_axes: int) -> _Norm:
  """Norms over everything but the leading ``stack_axes``."""

  def over_layer(reduce: Any, leaf: jax.Array) -> jax.Array:
    return reduce(leaf, axis=range(stack_axes, leaf.ndim))

  arrays = list(leaves.values())
  peaks = [over_layer(jnp.max, jnp.abs(leaf)) for leaf in arrays]
  largest = functools.reduce(jnp.maximum, peaks)
  divisor = jnp.where(largest > 0, largest, 1)
  squares = [
    over_layer(jnp.sum, (leaf / beside(divisor, leaf)) ** 2) for leaf in arrays
  ]
  return _Norm(largest, jnp.sqrt(functools.reduce(jnp.add, squares)))


def _rescale(leaf: jax.Array, own: _Norm, wanted: _Norm) -> jax.Array:
  divisor = jnp.where(own.largest > 0, own.largest, 1)
  relative = jnp.where(own.relative > 0, wanted.relative / own.relative, 0)
  return leaf / beside(divisor, leaf) * beside(relative * wanted.largest, leaf)
