"""``mbf``, the Mini-Block Fisher method: Algorithm 2 of the paper.

With ``k`` the number of updates made before, ``T1`` and ``T2`` the update periods of
curvature and inverse, and ``b`` a mini-block::

  m    <-  mu m + g
  G_b  <-  beta G_b + (1 - beta) g_b g_b^T    if k % T1 == 0
  P_b  <-  (G_b / c + lambda I)^(-1)          if k % T2 == 0
  d_b   =  P_b m_b
"""

import dataclasses
import functools
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mbf_optax._estimators.size import check_size
from mbf_optax._linalg import batches
from mbf_optax._linalg.methods import Method
from mbf_optax._linalg.products import Precision
from mbf_optax._linalg.statistics import Regularizer, Spectrum
from mbf_optax._mesh import devices, layout
from mbf_optax._optimizers import state as states
from mbf_optax._optimizers.eager import compiled_when_eager
from mbf_optax._optimizers.faults import without_faults
from mbf_optax._optimizers.instruction import WarmStart
from mbf_optax._optimizers.layers import Layers, States, corrected_by, every
from mbf_optax._partition import reading
from mbf_optax._partition.choice import for_mbf
from mbf_optax._partition.layer import Partition
from mbf_optax._partition.presets import flax_partition
from mbf_optax._tree import checks, paths
from mbf_optax._tree.shapes import Array, Float, Inexact, Int

# Relative damping stays positive down to the smallest gradients.
_FLOOR = 1e-30


class MbfState(NamedTuple):
  """State of :func:`scale_by_mbf`: arrays only.

  Attributes:
    count: ``()`` int32, number of updates made; the ``k`` of the algorithm.
    bias_correction: ``()``, the ``c`` of the block statistics: ``1 - curvature_ema **
      s`` after ``s`` statistics from a zero start, 1 after a warm start.
    elementwise_bias_correction: ``()``, the same for statistics of single elements.
    momentum: the heavy-ball momentum ``m``, structure and shapes of the parameters,
      float32 or wider.
    curvature: state of every layer by the path of its weight array: a ``BlockState``,
      ``LowRankState`` or ``ElementwiseState``. A scalar for a tree without leaves.
  """

  count: Int[Array, ""]  # type: ignore[assignment]
  bias_correction: Float[Array, ""]
  elementwise_bias_correction: Float[Array, ""]
  momentum: optax.Params
  curvature: States


def scale_by_mbf(
  damping: optax.ScalarOrSchedule = 3e-3,
  relative_damping: bool = False,
  momentum: jax.typing.ArrayLike = 0.9,
  curvature_ema: jax.typing.ArrayLike = 0.9,
  curvature_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 2,
  partition: Partition | None = None,
  inverse: Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  precision: Precision = "highest",
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
    inverse: ``"sweep"``, plain XLA operations and on CUDA a Cholesky factorization, or
      ``"linalg"`` for ``jnp.linalg.inv``, whose batched calls some jaxlib releases
      never return from on a CPU.
    inverse_dtype: in which inverses are kept between updates. ``None`` is float32 or
      wider; ``"bfloat16"`` halves their memory and rounds :math:`P_b` to three digits,
      which only dampings near the largest eigenvalues of the statistics bear.
      ``"low_rank"`` layers, whose inverses are small, keep them as they are.
    precision: of products with statistics and with :math:`P_b`. ``"highest"`` is
      float32; ``"high"`` is TF32 on CUDA and three passes in bfloat16 on TPU. An
      inverse of small damping may turn the rounding of TF32 into a wrong direction.

  Returns:
    The transformation. Updates come in the gradients' dtype; the state is an
    :class:`MbfState` and is float32 or wider. Its ``init`` logs what each layer became,
    at level ``INFO`` of the logger ``"mbf_optax"``.

  Raises:
    ValueError: here for a hyperparameter out of its range; in ``init`` for integer
      parameters or a partition that does not fit them; in ``update`` for gradients that
      differ from the parameters in structure or shape, and for a state of another
      partition, see :func:`check_state`.
    TypeError: for a hyperparameter of a wrong type, and in ``update`` for the state of
      another transformation.

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
  method = _Method(
    damping,
    relative_damping,
    momentum,
    curvature_ema,
    curvature_update_period,
    inverse_update_period,
    checks.partition(flax_partition() if partition is None else partition),
    inverse,
    inverse_dtype,
    precision,
  )
  return optax.GradientTransformationExtraArgs(method.init, compiled_when_eager(method))


@dataclasses.dataclass(frozen=True)
class _Method:
  """Algorithm 2 under one set of hyperparameters."""

  damping: optax.ScalarOrSchedule
  relative_damping: bool
  momentum: jax.typing.ArrayLike
  curvature_ema: jax.typing.ArrayLike
  curvature_update_period: jax.typing.ArrayLike
  inverse_update_period: jax.typing.ArrayLike
  partition: Partition
  inverse: Method
  inverse_dtype: jax.typing.DTypeLike | None
  precision: Precision

  def __post_init__(self) -> None:
    checks.positive("damping", self.damping, "3e-3, or 0.1 for relative damping")
    checks.decay("momentum", self.momentum)
    checks.decay("curvature_ema", self.curvature_ema)
    checks.period("curvature_update_period", self.curvature_update_period)
    checks.period("inverse_update_period", self.inverse_update_period)
    checks.choice("inverse", self.inverse, get_args(Method))
    checks.floating("inverse_dtype", self.inverse_dtype)
    checks.choice("precision", self.precision, get_args(Precision))

  def init(self, params: optax.Params) -> MbfState:
    """State before the first gradient, laid out beside the parameters."""
    params = states.as_arrays(params)
    layers = self._layers(reading.readings(self.partition, params))
    check_size(layers.estimators)
    states.log([estimator.reading for estimator in layers.estimators])

    def shardings(state: MbfState, whole: NamedSharding) -> MbfState:
      everything = jax.tree.map(lambda _: whole, state)
      return everything._replace(
        momentum=states.beside(params, whole),
        curvature=states.layers_beside(layers, state.curvature, params, whole),
      )

    build = functools.partial(init_state, layers)
    return layout.init(build, shardings, params)

  def update(
    self,
    updates: optax.Updates,
    state: MbfState,
    params: optax.Params | None = None,
    *,
    curvature_gradients: optax.Updates | None = None,
    warm_start: WarmStart | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, MbfState]:
    """Directions ``d`` and the next state."""
    del params, extra_args
    checks.same_state_kind(state, MbfState)
    checks.same_structure(updates, state.momentum)
    if not paths.flatten(updates):
      count = optax.safe_increment(state.count)
      return updates, state._replace(count=count) if warm_start is None else state
    source = updates if curvature_gradients is None else curvature_gradients
    source = without_faults(checks.curvature_leaves(source, updates))
    layers = self._layers(self.partition(updates))
    states.same_layers(layers, state.curvature, state.momentum)
    with jax.default_matmul_precision(self.precision):
      if warm_start is not None:
        warm = functools.partial(self.warm, layers)
        return layout.update(warm, updates, state, source, warm_start)
      step = functools.partial(self.step, layers)
      return layout.update(step, updates, state, source)

  def step(
    self, layers: Layers, g: optax.Updates, state: MbfState, source: paths.Leaves
  ) -> tuple[optax.Updates, MbfState]:
    """The update rule; ``source`` are the gradients that the statistics see."""
    k, beta = state.count, self.curvature_ema
    elementwise, blocks = layers.elementwise, layers.blocks
    m = jax.tree.map(self._heavy_ball, state.momentum, g)

    singles = elementwise.accumulate(state.curvature, source, beta)
    c_singles = corrected_by(beta, state.elementwise_bias_correction)

    def statistics(now: tuple[States, Array]) -> tuple[States, Array]:
      G, c = blocks.accumulate(now[0], source, beta), corrected_by(beta, now[1])
      return G | self._invert(_renewed_with_statistics(blocks), G, c, k), c

    now = blocks.of_these(state.curvature), state.bias_correction
    G, c = every(self.curvature_update_period, k, statistics, now)
    stale = blocks.where(lambda estimator: not estimator.refreshes_with_statistics)
    invert = functools.partial(self._invert, stale, c=c, k=k)
    P = every(self.inverse_update_period, k, invert, stale.of_these(G))

    curvature = singles | G | P
    d = layers.precondition(curvature, paths.flatten(m), self._damping(c_singles, k))
    d = jax.tree.map(lambda d, g: d.astype(g.dtype), paths.unflatten(g, d), g)
    m = jax.tree.map(
      lambda new, old: jnp.where(jnp.isfinite(new), new, old), m, state.momentum
    )
    k = optax.safe_increment(k)
    return d, MbfState(k, c, c_singles, m, curvature)

  def warm(
    self,
    layers: Layers,
    g: optax.Updates,
    state: MbfState,
    source: paths.Leaves,
    instruction: WarmStart,
  ) -> tuple[optax.Updates, MbfState]:
    """One call of a warm start: an average's next entry, or the final refresh."""
    nothing, average = jax.tree.map(jnp.zeros_like, g), instruction.average
    if average is not None:
      return nothing, state._replace(
        bias_correction=corrected_by(average, state.bias_correction),
        elementwise_bias_correction=corrected_by(
          average, state.elementwise_bias_correction
        ),
        curvature=layers.accumulate(state.curvature, source, average),
      )
    curvature = state.curvature | layers.completed(state.curvature)
    P = self._invert(layers.blocks, curvature, state.bias_correction, state.count)
    return nothing, state._replace(curvature=curvature | P)

  def _layers(self, readings: Any) -> Layers:
    chosen = [choice for reading in readings for choice in for_mbf(reading)]
    return Layers.of(chosen, self.inverse_dtype)

  def _heavy_ball(
    self, m: Inexact[Array, "*shape"], g: Inexact[Array, "*shape"]
  ) -> Inexact[Array, "*shape"]:
    return devices.replicated(self.momentum, m.dtype) * m + g.astype(m.dtype)

  def _invert(
    self, layers: Layers, G: States, c: Float[Array, ""], k: Int[Array, ""]
  ) -> States:
    """``P = (G / c + lambda I)^(-1)`` of the given layers."""
    regularize = self._damping(c, k)
    invert = functools.partial(batches.inverses, method=self.inverse)
    return layers.refresh(G, lambda e, state: e.matrices(state, regularize), invert)

  def _damping(self, c: Float[Array, ""], k: Int[Array, ""]) -> Regularizer:
    """``G / c + lambda I``, ``lambda`` relative to a layer's mean diagonal or not."""
    value = self.damping(k) if callable(self.damping) else self.damping

    def regularize(
      spectrum: Spectrum,
    ) -> tuple[Float[Array, "*#batch"], Float[Array, "*batch"]]:
      dtype, shape = spectrum.mean_diagonal.dtype, spectrum.mean_diagonal.shape
      ones, damping = [1] * len(shape), devices.replicated(value, dtype)
      correction = jnp.where(spectrum.is_corrected, 1, c).astype(dtype).reshape(ones)
      if not self.relative_damping:
        return 1 / correction, jnp.broadcast_to(damping, shape)
      axes = [a for a in range(len(shape)) if a not in spectrum.stack_axes]
      mean = jnp.mean(spectrum.mean_diagonal, axis=axes, keepdims=True) / correction
      # A layer that has seen no gradient uses damping 1.
      level = jnp.where(mean > 0, damping * mean + _FLOOR, 1)
      return 1 / correction, jnp.broadcast_to(level, shape)

    return regularize


def init_state(layers: Layers, params: optax.Params) -> MbfState:
  """State before the first gradient."""
  leaves = paths.flatten(params)
  return MbfState(
    count=jnp.zeros((), jnp.int32),
    bias_correction=jnp.zeros(()),
    elementwise_bias_correction=jnp.zeros(()),
    momentum=states.zeros(params),
    curvature=states.by_layer(layers.init(leaves), leaves),
  )


def _renewed_with_statistics(layers: Layers) -> Layers:
  return layers.where(lambda estimator: estimator.refreshes_with_statistics)
