"""What to watch while training: persistence, conditioning, and each layer's step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbf_optax._estimators.estimator import Estimator
from mbf_optax._linalg.statistics import unregularized
from mbf_optax._optimizers.adam_state import MbfAdamState
from mbf_optax._optimizers.fisher import MbfState
from mbf_optax._optimizers.found import find_states, plain
from mbf_optax._optimizers.layers import Layers, computed
from mbf_optax._optimizers.persistence import kappa_of
from mbf_optax._partition.blocks import joined, to_blocks, to_pieces
from mbf_optax._partition.choice import for_mbf, for_mbf_adam
from mbf_optax._partition.layer import Partition
from mbf_optax._partition.presets import flax_partition
from mbf_optax._tree import checks, paths
from mbf_optax._tree.dtypes import as_float


class LayerMetrics(NamedTuple):
  """Numbers of one layer, each an array ``()``.

  Attributes:
    persistence: how much of its gradient the momentum before it foretold, in
      ``[0, 1]``, the mean over stacked layers; 0 under ``mbf``, which does not follow
      it.
    exponent: the share of the optimizer's ``exponent`` that this persistence lets act,
      ``1 - sqrt(persistence)``.
    condition: condition number of the preconditioner, the geometric mean over the
      layer's blocks.
    largest_condition: the largest of them.
    norm: norm of the layer's update, its bias included.
    cosine: cosine of the angle between that update and the gradient; zero where either
      is.
  """

  persistence: jax.Array
  exponent: jax.Array
  condition: jax.Array
  largest_condition: jax.Array
  norm: jax.Array
  cosine: jax.Array


class _View(NamedTuple):
  """What metrics need of either optimizer's state."""

  layers: Layers
  momentum: paths.Leaves
  curvature: dict[str, Any]
  persistence: dict[str, jax.Array]
  correction: jax.Array | None


def metrics(
  state: optax.OptState,
  gradients: optax.Updates | None = None,
  updates: optax.Updates | None = None,
  partition: Partition | None = None,
) -> dict[str, LayerMetrics]:
  r"""What to watch of every layer: persistence, conditioning, and the step it makes.

  With gradients and updates given it costs little beside a step, and is best called in
  the jitted one. Layers that are read element by element are left out, since their
  blocks are single numbers.

  Under :func:`mbf` the condition number :math:`\kappa` of a block's damped statistics
  is estimated from the diagonals of the statistics :math:`G` and of the inverse
  :math:`P` in use, as

  .. math:: 1 + \operatorname{tr}(G / c) \, \max_i P_{ii} .

  Right after the inverse was refreshed that lies between :math:`\kappa / n` and
  :math:`n \kappa + 1` for blocks of length :math:`n`; while networks like those of the
  examples train, between half and three times :math:`\kappa`. Later the statistics are
  newer than the inverse that they multiply. A ``"low_rank"`` layer takes
  :math:`1 / \lambda` for the maximum, its bound, which blocks longer than the rank
  reach. Under :func:`mbf_adam`, whose matrices are powers, it is a lower bound: the
  ratio of the largest to the smallest diagonal element of :math:`R`, or the larger of
  the two sides'.

  Args:
    state: any state that contains an :class:`MbfState` or :class:`MbfAdamState`: of
      :func:`mbf`, :func:`mbf_adam`, or a chain or wrapper of them, or the ``opt_state``
      of an ``nnx.Optimizer``.
    gradients: the gradients that went into the update; ``None`` takes their running
      sum, the momentum, instead.
    updates: what the update returned with ``state``, so that the cosine is negative
      where it goes downhill; ``None`` takes the preconditioned momentum, before any
      sign, length or learning rate, at the price of multiplying it out again.
    partition: the one that the transformation was given; ``None`` is
      :func:`flax_partition`.

  Returns:
    The metrics of each layer by the path of its weight array.

  Raises:
    ValueError: if there is no such state, if two of them hold the same layer, or if the
      partition or the gradients do not fit the state.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> tx = mbf_optax.mbf_adam(learning_rate=0.1)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
    >>> gradients = jax.tree.map(jnp.ones_like, params)
    >>> updates, state = tx.update(gradients, tx.init(params), params)
    >>> layer = mbf_optax.metrics(state, gradients, updates)["Dense_0/kernel"]
    >>> print(layer.persistence, layer.norm.round(2), layer.cosine.round(2))
    1.0 0.45 -1.0
  """
  partition = checks.partition(flax_partition() if partition is None else partition)
  bare, _ = plain(state)
  given = None if gradients is None else paths.flatten(gradients)
  stepped = None if updates is None else paths.flatten(updates)
  found: dict[str, LayerMetrics] = {}
  for one in find_states("metrics", bare):
    if not isinstance(one.curvature, Mapping):
      continue  # made for a tree without leaves
    view = (
      _of_mbf(one, partition) if isinstance(one, MbfState) else _of_adam(one, partition)
    )
    for estimator in view.layers.estimators:
      path = estimator.reading.path
      if path in found:
        raise ValueError(
          f"metrics: two states in the given one hold the layer {path!r}; pass each of"
          " them by itself."
        )
      found[path] = _of_layer(estimator, view, given, stepped)
  return found


def _of_mbf(state: MbfState, partition: Partition) -> _View:
  readings = [c for r in partition(state.momentum) for c in for_mbf(r)]
  layers, momentum = Layers.of(readings), paths.flatten(state.momentum)
  _check(layers, state.curvature, momentum)
  blocks = layers.blocks
  none = {e.reading.path: jnp.zeros(()) for e in blocks.estimators}
  correction = _or_one(state.bias_correction)
  return _View(blocks, momentum, dict(state.curvature), none, correction)


def _of_adam(state: MbfAdamState, partition: Partition) -> _View:
  readings = [c for r in partition(state.adam.nu) for c in for_mbf_adam(r)]
  layers = Layers.of(readings).blocks
  momentum = paths.flatten(jax.tree.map(as_float, state.adam.mu))
  _check(layers, state.curvature, paths.flatten(state.adam.nu))
  kappa = {path: kappa_of(r) for path, r in state.foretold.items()}
  return _View(layers, momentum, dict(state.curvature), kappa, None)


def _check(layers: Layers, curvature: Any, moments: paths.Leaves) -> None:
  """Raises a ``ValueError`` unless the state was made for these layers."""
  given = {path: _shapes(layer) for path, layer in dict(curvature).items()}
  wanted = jax.eval_shape(layers.init, moments)
  for path in (*wanted, *given):
    if given.get(path) != (_shapes(wanted[path]) if path in wanted else None):
      raise ValueError(
        f"metrics: the state was not made for the partition's reading of {path!r}; pass"
        " the partition that the transformation was given."
      )


def _shapes(state: Any) -> Any:
  leaves, structure = jax.tree.flatten(state)
  return structure, [leaf.shape for leaf in leaves]


def _of_layer(
  estimator: Estimator,
  view: _View,
  gradients: paths.Leaves | None,
  updates: paths.Leaves | None,
) -> LayerMetrics:
  reading = estimator.reading
  state = computed(estimator, view.curvature[reading.path])
  vectors = to_blocks(reading, view.momentum)
  if updates is None:
    with jax.default_matmul_precision("highest"):
      pieces = to_pieces(reading, view.momentum)
      step = joined(estimator.precondition(state, pieces, unregularized))
  else:
    step = _blocks_of(estimator, "updates", updates, view.momentum)
  if gradients is not None:
    vectors = _blocks_of(estimator, "gradients", gradients, view.momentum)
  if view.correction is None:
    conditions = estimator.spread(state)
  else:
    conditions = estimator.condition(state, view.correction.astype(vectors.dtype))
  step, unit = _scaled(step)
  gradient, _ = _scaled(vectors)
  cosine = jnp.sum(step * gradient) / _or_one(_length(step) * _length(gradient))
  kappa = jnp.mean(view.persistence[reading.path])
  return LayerMetrics(
    persistence=kappa,
    exponent=1 - jnp.sqrt(kappa),
    condition=jnp.exp(jnp.mean(jnp.log(conditions))),
    largest_condition=jnp.max(conditions),
    norm=unit * _length(step),
    cosine=jnp.clip(cosine, -1, 1),  # which rounding may pass
  )


def _scaled(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Vectors in units of their largest element, whose squares cannot overflow."""
  unit = jnp.max(jnp.abs(vectors))
  return vectors / _or_one(unit), unit


def _length(vectors: jax.Array) -> jax.Array:
  """Norm of all vectors as one."""
  return jnp.sqrt(jnp.sum(jnp.square(vectors)))


def _or_one(value: jax.Array) -> jax.Array:
  """``value``, or 1 where it is 0 (a safe divisor)."""
  return jnp.where(value > 0, value, 1)


def _blocks_of(
  estimator: Estimator, name: str, leaves: paths.Leaves, momentum: paths.Leaves
) -> jax.Array:
  """The layer's block vectors in ``leaves``, checked to be there."""
  reading = estimator.reading
  for path in reading.paths:
    expected = momentum[path]
    if path not in leaves or leaves[path].shape != expected.shape:
      raise ValueError(
        f"metrics: {name} has no leaf {path!r} of shape {expected.shape}; pass a tree"
        " like the parameters."
      )
  return to_blocks(reading, leaves).astype(momentum[reading.path].dtype)
