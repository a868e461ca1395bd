"""The transformation: Algorithm 2 of the paper as ``optax`` sees it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbf_optax import checks, low_rank, placement, refresh, stagger, tree
from mbf_optax.curvature import Curvature, Layers
from mbf_optax.layers import Partition, Reading, as_float
from mbf_optax.presets import flax_partition

_LOGGER = logging.getLogger("mbf_optax")


class MbfState(NamedTuple):
  """State of :func:`scale_by_mbf`: arrays only.

  Attributes:
    count: ``()`` int32, number of updates made; the ``k`` of the algorithm.
    weight: ``()``, total weight of the block statistics' moving averages, the bias
      correction ``c``: ``1 - curvature_ema ** s`` after ``s`` statistics from a zero
      start, 1 after a warm start.
    elementwise_weight: ``()``, the same for statistics kept element by element.
    momentum: the heavy-ball momentum ``m``, structure and shapes of the parameters,
      float32 or wider.
    curvature: state of every layer by the path of its weight array: a ``BlockState``,
      ``LowRankState`` or ``ElementwiseState``. A scalar for a tree without leaves.
  """

  count: jax.Array  # type: ignore[assignment]
  weight: jax.Array
  elementwise_weight: jax.Array
  momentum: optax.Params
  curvature: Layers | jax.Array


class WarmStart(NamedTuple):
  """Instruction to an update to work on the statistics alone.

  Attributes:
    average: ``None`` to refresh the inverses, else the weight that the statistics keep
      while the given gradients enter.
  """

  average: jax.Array | None


def scale_by_mbf(
  damping: optax.ScalarOrSchedule = 3e-3,
  relative_damping: bool = False,
  momentum: jax.typing.ArrayLike = 0.9,
  curvature_ema: jax.typing.ArrayLike = 0.9,
  curvature_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 2,
  partition: Partition | None = None,
  inverse: refresh.Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  staggered: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Scales gradients by the inverse of their damped mini-block Fisher matrix.

  With :math:`k` the number of updates made before and :math:`b` a mini-block,

  .. math::
    m &\leftarrow \mu m + g \\
    G_b &\leftarrow \beta G_b + (1 - \beta) g_b g_b^T
      \quad\text{if } T_1 \mid k \\
    P_b &\leftarrow (G_b / c + \lambda I)^{-1} \quad\text{if } T_2 \mid k \\
    d_b &= P_b m_b

  where :math:`c = 1 - \beta^s` corrects for the :math:`s` statistics since a zero
  start. The update's ``curvature_gradients`` argument, a tree like the gradients, takes
  the place of :math:`g` in the statistics: gradients at labels sampled from the model
  make this the paper's MBF-True.

  Args:
    damping: :math:`\lambda`, a positive number or a schedule of it.
    relative_damping: whether a layer's damping is ``damping`` times the mean diagonal
      of its statistics, which frees it of any unit.
    momentum: :math:`\mu`, in ``[0, 1)``.
    curvature_ema: :math:`\beta`, in ``[0, 1)``.
    curvature_update_period: :math:`T_1`, updates between statistics.
    inverse_update_period: :math:`T_2`, updates between inverses. A stale inverse
      multiplies by :math:`1 / \lambda` whatever direction has appeared since; without
      grafting or a warm start, keep it small. ``"low_rank"`` layers refresh with their
      statistics.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: ``"sweep"``, plain XLA operations, or ``"linalg"`` for
      ``jnp.linalg.inv``, whose batched calls some jaxlib releases never return from
      on a CPU.
    inverse_dtype: in which inverses are kept between updates. ``None`` is float32 or
      wider; ``"bfloat16"`` halves their memory and rounds :math:`P_b` to three digits.
      ``"low_rank"`` layers, whose inverses are small, keep them as they are.
    staggered: whether layers whose blocks differ in size take turns to refresh their
      inverses, each every :math:`T_2` updates and all at the first: no step has to wait
      for all of them. There are :math:`T_2 / T_1` turns, so this needs a :math:`T_2` of
      at least twice :math:`T_1`. Compiles a little longer.

  Returns:
    The transformation. Updates come in the gradients' dtype; the state is an
    :class:`MbfState` and is float32 or wider. Its ``init`` logs what each layer became,
    at level ``INFO`` of the logger ``"mbf_optax"``.

  Raises:
    ValueError: here for a hyperparameter out of its range; in ``init`` for integer
      parameters or a partition that does not fit them; in ``update`` for gradients that
      differ from the parameters in structure or shape, and for a state of another
      partition, see :func:`check_state`.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, mbf_optax
    >>> tx = optax.chain(mbf_optax.scale_by_mbf(), optax.scale_by_learning_rate(0.01))
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    >>> state = tx.init(params)
    >>> gradients = jax.tree.map(jnp.ones_like, params)
    >>> updates, state = tx.update(gradients, state, params)
    >>> print(updates["Dense_0"]["bias"].round(6))
    [-0.002498 -0.002498]

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, Algorithm 2 (and 4 for MBF-True).
  """
  partition = flax_partition() if partition is None else partition
  curvature = Curvature(damping, relative_damping, inverse, inverse_dtype)
  algorithm = _Algorithm(
    curvature,
    momentum,
    curvature_ema,
    curvature_update_period,
    inverse_update_period,
    staggered,
  )

  def init(params: optax.Params) -> MbfState:
    readings = checks.readings(partition, params)
    for reading in readings:
      _LOGGER.info("%s", reading.describe())
    build = functools.partial(init_state, curvature, readings)
    return placement.init(build, readings, params)

  def update(
    updates: optax.Updates,
    state: MbfState,
    params: optax.Params | None = None,
    *,
    curvature_gradients: optax.Updates | None = None,
    warm_start: WarmStart | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, MbfState]:
    del params, extra_args
    checks.same_structure(updates, state.momentum)
    if not tree.flatten(updates):
      return updates, state._replace(count=optax.safe_increment(state.count))
    source = updates if curvature_gradients is None else curvature_gradients
    source = checks.curvature_leaves(source, updates)
    readings = partition(updates)
    _check_layout(curvature, readings, state)
    kinds = _by_kind(readings)
    if warm_start is not None:
      warm = functools.partial(_warm, curvature, kinds)
      return placement.update(warm, updates, state, source, warm_start)
    step = functools.partial(algorithm.step, kinds)
    return placement.update(step, updates, state, source)

  return optax.GradientTransformationExtraArgs(init, update)


def init_state(
  curvature: Curvature, readings: Sequence[Reading], params: optax.Params
) -> MbfState:
  """State before the first gradient."""
  weight = jnp.zeros(())
  return MbfState(
    count=jnp.zeros((), jnp.int32),
    weight=weight,
    elementwise_weight=jnp.zeros_like(weight),
    momentum=jax.tree.map(lambda p: jnp.zeros_like(as_float(p)), params),
    curvature=curvature.init(readings, tree.flatten(params)) or jnp.zeros(()),
  )


def _check_layout(
  curvature: Curvature, readings: Sequence[Reading], state: MbfState
) -> None:
  """Raises a ``ValueError`` unless the state is one of these readings."""
  expected = jax.eval_shape(
    lambda m: curvature.init(readings, m), tree.flatten(state.momentum)
  )
  checks.same_state({"curvature": state.curvature}, {"curvature": expected})


class _Readings(NamedTuple):
  """Layers by when they are updated."""

  all: list[Reading]
  elementwise: list[Reading]
  blocks: list[Reading]
  low_rank: list[Reading]
  matrices: list[Reading]


def _by_kind(readings: Sequence[Reading]) -> _Readings:
  def select(*estimators: str) -> list[Reading]:
    return [r for r in readings if r.layer.estimator in estimators]

  return _Readings(
    all=list(readings),
    elementwise=select("rms", "inverse"),
    blocks=select("full", "shared", "low_rank"),
    low_rank=select("low_rank"),
    matrices=select("full", "shared"),
  )


@dataclasses.dataclass(frozen=True)
class _Algorithm:
  """Algorithm 2 under one set of hyperparameters."""

  curvature: Curvature
  momentum: jax.typing.ArrayLike
  curvature_ema: jax.typing.ArrayLike
  curvature_update_period: jax.typing.ArrayLike
  inverse_update_period: jax.typing.ArrayLike
  staggered: bool

  def __post_init__(self) -> None:
    checks.decay("momentum", self.momentum)
    checks.decay("curvature_ema", self.curvature_ema)
    checks.period("curvature_update_period", self.curvature_update_period)
    checks.period("inverse_update_period", self.inverse_update_period)

  def step(
    self,
    readings: _Readings,
    updates: optax.Updates,
    state: MbfState,
    source: tree.Leaves,
  ) -> tuple[optax.Updates, MbfState]:
    """Directions and the next state; ``source`` are the statistics' gradients."""
    curvature, ema = self.curvature, self.curvature_ema
    count, layers = state.count, dict(state.curvature)

    velocity = jax.tree.map(
      lambda m, g: placement.scalar(self.momentum, m.dtype) * m + g.astype(m.dtype),
      state.momentum,
      updates,
    )
    elementwise_weight = _average(ema, state.elementwise_weight)
    layers |= curvature.accumulate(readings.elementwise, layers, source, ema)

    def accumulate(averages: tuple[jax.Array, Layers]) -> tuple[jax.Array, Layers]:
      weight, layers = averages
      weight = _average(ema, weight)
      layers = curvature.accumulate(readings.blocks, layers, source, ema)
      return weight, curvature.refresh(readings.low_rank, layers, weight, count)

    blocks = {reading.path: layers[reading.path] for reading in readings.blocks}
    is_due = count % placement.scalar(self.curvature_update_period, count.dtype) == 0
    weight, blocks = _when(is_due, accumulate, (state.weight, blocks))
    layers |= blocks
    for is_due, group in self._refreshes(readings.matrices, count):
      refreshed = functools.partial(
        curvature.refresh, group, weight=weight, count=count
      )
      layers |= _when(is_due, refreshed, {r.path: layers[r.path] for r in group})

    directions = curvature.precondition(
      readings.all, layers, tree.flatten(velocity), elementwise_weight, count
    )
    directions = tree.unflatten(updates, directions)
    directions = jax.tree.map(lambda d, g: d.astype(g.dtype), directions, updates)
    return directions, MbfState(
      count=optax.safe_increment(count),
      weight=weight,
      elementwise_weight=elementwise_weight,
      momentum=jax.tree.map(_keep_finite, velocity, state.momentum),
      curvature=layers,
    )

  def _refreshes(
    self, readings: list[Reading], count: jax.Array
  ) -> list[tuple[jax.Array, list[Reading]]]:
    """Layers that are refreshed together, and whether it is their turn."""
    groups = stagger.groups(readings) if self.staggered else [readings]
    statistics = placement.scalar(self.curvature_update_period, count.dtype)
    period = placement.scalar(self.inverse_update_period, count.dtype)
    phases = stagger.phases(len(groups), statistics, period)
    turns = [(count == 0) | (count % period == phase) for phase in phases]
    return list(zip(turns, groups, strict=True))


def _when(is_due: jax.Array, branch: Callable[[Any], Any], state: Any) -> Any:
  return jax.lax.cond(is_due, branch, lambda unchanged: unchanged, state)


def _average(ema: jax.typing.ArrayLike, weight: jax.Array) -> jax.Array:
  """Total weight of a moving average after one more entry."""
  ema = placement.scalar(ema, weight.dtype)
  return ema * weight + (1 - ema)


def _keep_finite(new: jax.Array, old: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(new), new, old)


def _warm(
  curvature: Curvature,
  readings: _Readings,
  updates: optax.Updates,
  state: MbfState,
  gradients: tree.Leaves,
  instruction: WarmStart,
) -> tuple[optax.Updates, MbfState]:
  """One call of a warm start: an average's next entry, or the final refresh."""
  nothing = jax.tree.map(jnp.zeros_like, updates)
  layers = dict(state.curvature)
  if instruction.average is not None:
    return nothing, state._replace(
      weight=_average(instruction.average, state.weight),
      elementwise_weight=_average(instruction.average, state.elementwise_weight),
      curvature=curvature.accumulate(
        readings.all, layers, gradients, instruction.average
      ),
    )
  for reading in readings.low_rank:
    layers[reading.path] = low_rank.normalized(layers[reading.path])
  return nothing, state._replace(
    curvature=curvature.refresh(readings.blocks, layers, state.weight, state.count)
  )
