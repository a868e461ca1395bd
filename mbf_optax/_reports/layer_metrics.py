"""What to watch while training: conditioning, and what the inverse does to a step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbf_optax import tree
from mbf_optax.curvature import computed, estimator_of
from mbf_optax.layers import Partition, Reading, to_blocks
from mbf_optax.presets import flax_partition
from mbf_optax.transform import MbfState


class LayerMetrics(NamedTuple):
  """Numbers of one layer, each an array ``()``.

  Attributes:
    condition: condition number of the damped statistics, the geometric mean over the
      layer's blocks.
    largest_condition: the largest of them.
    norm: norm of the layer's update, its bias included.
    cosine: cosine of the angle between that update and the gradient; zero where either
      is.
  """

  condition: jax.Array
  largest_condition: jax.Array
  norm: jax.Array
  cosine: jax.Array


def metrics(
  state: optax.OptState,
  gradients: optax.Updates | None = None,
  updates: optax.Updates | None = None,
  partition: Partition | None = None,
) -> dict[str, LayerMetrics]:
  r"""Condition numbers of every layer's blocks, and what the inverse makes of a step.

  With gradients and updates given it costs little beside a step, and is best called in
  the jitted one. Layers that are read element by element are left out; their blocks are
  single numbers.

  The condition number :math:`\kappa` of a block's damped statistics is estimated from
  the diagonals of the statistics :math:`G` and of the inverse :math:`P` in use, as

  .. math:: 1 + \operatorname{tr}(G / c) \, \max_i P_{ii} .

  Right after the inverse was refreshed that lies between :math:`\kappa / n` and
  :math:`n \kappa + 1` for blocks of length :math:`n`; while networks like those of the
  examples train, between half and three times :math:`\kappa`. Later the statistics are
  newer than the inverse that they multiply. A ``"low_rank"`` layer takes
  :math:`1 / \lambda` for the maximum, its bound, which blocks longer than the rank
  reach.

  Args:
    state: any state that contains an :class:`MbfState`: of :func:`mbf`,
      :func:`mbf_adam`, or a chain or wrapper of them.
    gradients: the gradients that went into the update; ``None`` takes their running
      sum, the momentum, instead.
    updates: what the update returned with ``state``, so that the cosine is negative
      where it goes downhill; ``None`` takes MBF's own direction :math:`P m`, before
      any sign, grafting or learning rate, at the price of multiplying it out again.
    partition: the one that the transformation was given; ``None`` is
      :func:`flax_partition`.

  Returns:
    The metrics of each layer by the path of its weight array.

  Raises:
    ValueError: if there is no :class:`MbfState`, if two of them hold the same layer, or
      if the partition or the gradients do not fit the state.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> tx = mbf_optax.mbf_adam(learning_rate=0.1)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    >>> gradients = jax.tree.map(jnp.ones_like, params)
    >>> updates, state = tx.update(gradients, tx.init(params), params)
    >>> layer = mbf_optax.metrics(state, gradients, updates)["Dense_0/kernel"]
    >>> print(layer.condition.round(), layer.norm.round(2), layer.cosine.round(2))
    31.0 0.28 -1.0
  """
  partition = flax_partition() if partition is None else partition
  gradients = None if gradients is None else tree.flatten(gradients)
  updates = None if updates is None else tree.flatten(updates)
  found: dict[str, LayerMetrics] = {}
  for mbf_state in _mbf_states(state):
    for reading in partition(mbf_state.momentum):
      if reading.path in found:
        raise ValueError(
          f"metrics: two MbfStates in the given state hold the layer {reading.path!r};"
          " pass each of them by itself."
        )
      if not reading.layer.elementwise:
        found[reading.path] = _of_layer(reading, mbf_state, gradients, updates)
  return found


def _of_layer(
  reading: Reading,
  state: MbfState,
  gradients: tree.Leaves | None,
  updates: tree.Leaves | None,
) -> LayerMetrics:
  momentum = tree.flatten(state.momentum)
  layer = _state_of(reading, state, momentum)
  estimator, vectors = estimator_of(reading), to_blocks(reading, momentum)
  weight = _or_one(state.weight).astype(vectors.dtype)
  conditions = estimator.condition(layer, weight)
  if updates is None:
    step = estimator.precondition(reading, layer, vectors)
  else:
    step = _blocks_of(reading, "updates", updates, momentum)
  if gradients is not None:
    vectors = _blocks_of(reading, "gradients", gradients, momentum)
  step, unit = _scaled(step)
  gradient, _ = _scaled(vectors)
  lengths = _length(step) * _length(gradient)
  return LayerMetrics(
    condition=jnp.exp(jnp.mean(jnp.log(conditions))),
    largest_condition=jnp.max(conditions),
    norm=unit * _length(step),
    cosine=jnp.sum(step * gradient) / _or_one(lengths),
  )


def _scaled(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Vectors in units of their largest element, whose squares cannot overflow."""
  unit = jnp.max(jnp.abs(vectors))
  return vectors / _or_one(unit), unit


def _length(vectors: jax.Array) -> jax.Array:
  """Norm of all vectors as one."""
  return jnp.sqrt(jnp.sum(jnp.square(vectors)))


def _or_one(value: jax.Array) -> jax.Array:
  """The value, or one for zero: something to divide by."""
  return jnp.where(value > 0, value, 1)


def _mbf_states(state: optax.OptState) -> list[MbfState]:
  def is_mbf(node: Any) -> bool:
    return isinstance(node, MbfState)

  states = list(filter(is_mbf, jax.tree.leaves(state, is_leaf=is_mbf)))
  if not states:
    raise ValueError(
      "metrics: there is no MbfState in the given state; pass the state that tx.init or"
      " tx.update returned, of a tx that contains scale_by_mbf."
    )
  return states


def _state_of(reading: Reading, state: MbfState, momentum: tree.Leaves) -> Any:
  """The layer's state, checked to be that of the reading."""
  dtype = momentum[reading.path].dtype
  init = functools.partial(estimator_of(reading).init, reading, dtype)
  layer = dict(state.curvature).get(reading.path)
  if _shapes(layer) != _shapes(jax.eval_shape(init)):
    raise ValueError(
      f"metrics: the partition reads {reading.path!r} as {reading.label}, for which the"
      " state was not made; pass the partition that the transformation was given."
    )
  return computed(layer)


def _shapes(state: Any) -> Any:
  leaves, structure = jax.tree.flatten(state)
  return structure, [leaf.shape for leaf in leaves]


def _blocks_of(
  reading: Reading, name: str, leaves: tree.Leaves, momentum: tree.Leaves
) -> jax.Array:
  """The layer's block vectors in ``leaves``, checked to be there."""
  for path in reading.paths:
    expected = momentum[path]
    if path not in leaves or leaves[path].shape != expected.shape:
      raise ValueError(
        f"metrics: {name} has no leaf {path!r} of shape {expected.shape}; pass a tree"
        " like the parameters."
      )
  return to_blocks(reading, leaves).astype(momentum[reading.path].dtype)
