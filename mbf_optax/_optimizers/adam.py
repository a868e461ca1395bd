"""``mbf_adam``: Adam with a matrix for every mini-block.

With ``t`` the number of this step, counted from 1, and ``a`` Adam's own update::

  m, v, a      as Adam has them, with all of its options
  r            =  <g, m^_(t-1)> / max(|g|^2, |m^_(t-1)|^2)     layer by layer
  kappa        =  clip(average of r, 0, 1)                     persistence, kappa_1 = 1
  G_b         <-  beta G_b + (1 - beta) g_b g_b^T              every T1 steps
  A_b          =  (1 - alpha) G_b / (c tau) + alpha I          alpha = n / (n + N)
  R_b         <-  F (A_b + lambda I)^(-exponent (1 - sqrt(kappa))) F
                                                 early, then every T2 steps
  d_b          =  R_b m^_b
  update_b     =  d_b |a_b| / |d_b|

``tau`` is the mean diagonal of ``G_b / c`` and ``N`` the number of gradients that
``G_b`` is made of: a matrix is trusted as far as it is filled. ``F`` is the identity,
or scales rows as Adam does where their scales differ by orders of magnitude
(:mod:`mbf_optax._linalg.rows`). Blocks of one element take ``a``.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mbf_optax._estimators.estimator import INPUTS, OUTPUTS, Estimator
from mbf_optax._estimators.size import check_size
from mbf_optax._linalg import batches
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.methods import Method
from mbf_optax._linalg.products import Precision
from mbf_optax._linalg.statistics import Statistics, unregularized
from mbf_optax._mesh import devices, layout
from mbf_optax._optimizers import moments
from mbf_optax._optimizers import state as states
from mbf_optax._optimizers.adam_state import MbfAdamState, init_state
from mbf_optax._optimizers.eager import compiled_when_eager
from mbf_optax._optimizers.exponents import Averages, acting
from mbf_optax._optimizers.faults import without_faults
from mbf_optax._optimizers.instruction import WarmStart
from mbf_optax._optimizers.layers import (
  Layers,
  States,
  computed,
  corrected_by,
  every,
  is_always,
  when,
)
from mbf_optax._optimizers.persistence import averaged, foretold, weight_of_the_next
from mbf_optax._optimizers.shrinkage import shrunk
from mbf_optax._partition import reading
from mbf_optax._partition.blocks import Pieces
from mbf_optax._partition.choice import for_mbf_adam
from mbf_optax._partition.layer import Partition
from mbf_optax._partition.presets import flax_partition
from mbf_optax._tree import checks, paths
from mbf_optax._tree.shapes import Array, Bool, Float, Int


def scale_by_mbf_adam(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  eps_root: jax.typing.ArrayLike = 0.0,
  mu_dtype: jax.typing.DTypeLike | None = None,
  *,
  nesterov: bool = False,
  damping: optax.ScalarOrSchedule = 0.1,
  exponent: optax.ScalarOrSchedule = 0.75,
  output_exponent: optax.ScalarOrSchedule = 0.5,
  curvature_ema: jax.typing.ArrayLike = 0.99,
  curvature_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 10,
  partition: Partition | None = None,
  inverse: Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  precision: Precision = "high",
) -> optax.GradientTransformationExtraArgs:
  r"""Scales gradients as Adam does, with a matrix for every mini-block.

  What belongs where ``optax.scale_by_adam`` stands in a chain. With :math:`t` the
  number of the step, :math:`b` a mini-block, :math:`m`, :math:`v` and :math:`a` Adam's
  moments and update,

  .. math::
    r &= \langle g, \hat m_{t-1} \rangle / \max(|g|^2, |\hat m_{t-1}|^2) \\
    \kappa &= \operatorname{clip}(\operatorname{average}(r), 0, 1) \\
    G_b &\leftarrow \beta G_b + (1 - \beta) g_b g_b^T
      \quad\text{every } T_1 \text{ steps} \\
    A_b &= (1 - \alpha) G_b / (c \tau) + \alpha I,
      \quad \alpha = n / (n + N) \\
    R_b &\leftarrow F_b (A_b + \lambda I)^{-p (1 - \sqrt\kappa)} F_b
      \quad\text{at } t = 1, 2, 4, 8, \ldots \text{ and every } T_2 \text{ steps} \\
    d_b &= R_b \hat m_b \\
    u_b &= d_b \, |a_b| / |d_b|

  where the average begins with :math:`r_2`, :math:`\kappa_1 = 1`, :math:`c = 1 -
  \beta^s` corrects for the start at zero, :math:`\tau` is the mean diagonal of
  :math:`G_b / c`, :math:`n` the length of a block and :math:`N` the number of gradient
  vectors that :math:`G_b` is made of. :math:`F_b` is :math:`D^{-s/2}` with :math:`D`
  the diagonal of :math:`G_b / (c \tau)` and :math:`s = \operatorname{clip}((0.4 - u) /
  0.2, 0, 1) / 2`, where :math:`u = (\sum \sqrt{(1 - \alpha) D + \alpha} / n)^2` is the
  share of elements that have the others' scale: the identity where that is 0.4 or more,
  and Adam's own scaling of inputs whose scales differ by orders of magnitude. The
  persistence :math:`\kappa` of a layer is near one while its gradient persists; then
  the step follows Adam's momentum, rows scaled by :math:`F_b`, at Adam's length. It is
  near zero where the gradient is noise or oscillates; then the matrix acts with its
  full exponent. ``"two_sided"`` layers have matrices of their outputs as well and are
  scaled as one. Whatever is read element by element takes :math:`a` itself.

  Args:
    b1: Adam's first decay, in ``[0, 1)``.
    b2: Adam's second decay, in ``[0, 1)``.
    eps: Adam's epsilon.
    eps_root: Adam's epsilon under the root.
    mu_dtype: dtype of the first moment; ``None`` is float32 or wider.
    nesterov: whether Adam takes Nesterov's momentum; a Python boolean.
    damping: :math:`\lambda`, relative to the matrices' mean diagonal; positive, a
      number or a schedule.
    exponent: :math:`p` in ``[0, 1]``, a number or a schedule.
    output_exponent: the same for the outputs of ``"two_sided"`` layers.
    curvature_ema: :math:`\beta`, in ``[0, 1)``.
    curvature_update_period: :math:`T_1`, steps between statistics.
    inverse_update_period: :math:`T_2`, steps between refreshes of :math:`R_b`.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: ``"sweep"``, plain XLA operations and on CUDA a Cholesky factorization, or
      ``"linalg"`` for ``jnp.linalg.inv``, whose batched calls some jaxlib releases
      never return from on a CPU.
    inverse_dtype: in which :math:`R_b` is kept; ``None`` is float32 or wider,
      ``"bfloat16"`` halves its memory.
    precision: of products with statistics and with :math:`R_b`: ``"high"`` is TF32 on
      CUDA, three passes in bfloat16 on TPU and float32 on a CPU; ``"highest"`` is
      float32 everywhere. Matrices are always inverted in float32.

  Returns:
    The transformation. Updates come in the gradients' dtype; the state is an
    :class:`MbfAdamState`. Elements of a gradient that are not finite, or too large to
    be squared and added up (1.8e16 in float32), enter it as zeros. Its ``update`` takes
    ``curvature_gradients``, a tree like the gradients that the statistics see in their
    place. Its ``init`` logs what each layer became, at level ``INFO`` of the logger
    ``"mbf_optax"``.

  Raises:
    ValueError: for a hyperparameter out of its range; in ``init`` for parameters that
      cannot be trained or a partition that does not fit them; in ``update`` for
      gradients or a state that do not fit the parameters, see :func:`check_state`.
    TypeError: for a hyperparameter of a wrong type, and in ``update`` for the state of
      another transformation.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, mbf_optax
    >>> tx = optax.chain(mbf_optax.scale_by_mbf_adam(), optax.scale(-0.1))
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.zeros(5)}}
    >>> state = tx.init(params)
    >>> gradients = jax.tree.map(jnp.ones_like, params)
    >>> updates, state = tx.update(gradients, state, params)
    >>> print(updates["Dense_0"]["bias"].round(3))
    [-0.1 -0.1 -0.1 -0.1 -0.1]

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, for the blocks; Kingma and Ba, `Adam
    <https://arxiv.org/abs/1412.6980>`_, 2015; Gupta, Koren and Singer, `Shampoo
    <https://arxiv.org/abs/1802.09568>`_, 2018, for two sides; Ledoit and Wolf, 2004,
    for shrinkage. The exponent that follows persistence is this library's own.
  """
  method = _Method(
    b1,
    b2,
    eps,
    eps_root,
    mu_dtype,
    nesterov,
    damping,
    exponent,
    output_exponent,
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
  """The update rule under one set of hyperparameters."""

  b1: jax.typing.ArrayLike
  b2: jax.typing.ArrayLike
  eps: jax.typing.ArrayLike
  eps_root: jax.typing.ArrayLike
  mu_dtype: jax.typing.DTypeLike | None
  nesterov: bool
  damping: optax.ScalarOrSchedule
  exponent: optax.ScalarOrSchedule
  output_exponent: optax.ScalarOrSchedule
  curvature_ema: jax.typing.ArrayLike
  curvature_update_period: jax.typing.ArrayLike
  inverse_update_period: jax.typing.ArrayLike
  partition: Partition
  inverse: Method
  inverse_dtype: jax.typing.DTypeLike | None
  precision: Precision

  def __post_init__(self) -> None:
    checks.decay("b1", self.b1)
    checks.decay("b2", self.b2)
    checks.positive("damping", self.damping, "0.1")
    checks.fraction("exponent", self.exponent)
    checks.fraction("output_exponent", self.output_exponent)
    checks.decay("curvature_ema", self.curvature_ema)
    checks.period("curvature_update_period", self.curvature_update_period)
    checks.period("inverse_update_period", self.inverse_update_period)
    checks.choice("inverse", self.inverse, get_args(Method))
    checks.floating("inverse_dtype", self.inverse_dtype)
    checks.choice("precision", self.precision, get_args(Precision))

  @property
  def adam(self) -> optax.GradientTransformation:
    """Adam with the same hyperparameters."""
    moments = self.b1, self.b2, self.eps, self.eps_root, self.mu_dtype
    return optax.scale_by_adam(*moments, nesterov=self.nesterov)

  def init(self, params: optax.Params) -> MbfAdamState:
    """State before the first gradient, laid out beside the parameters."""
    params = states.as_arrays(params)
    layers = self._layers(reading.readings(self.partition, params))
    check_size(layers.estimators)
    states.log([estimator.reading for estimator in layers.estimators])

    def shardings(state: MbfAdamState, whole: NamedSharding) -> MbfAdamState:
      everything = jax.tree.map(lambda _: whole, state)
      placed = states.beside(params, whole)
      return everything._replace(
        adam=everything.adam._replace(mu=placed, nu=placed),
        curvature=states.layers_beside(layers.blocks, state.curvature, params, whole),
      )

    build = functools.partial(init_state, self.adam, layers)
    return layout.init(build, shardings, params)

  def update(
    self,
    updates: optax.Updates,
    state: MbfAdamState,
    params: optax.Params | None = None,
    *,
    curvature_gradients: optax.Updates | None = None,
    warm_start: WarmStart | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, MbfAdamState]:
    """Scaled gradients and the next state."""
    del params, extra_args
    checks.same_state_kind(state, MbfAdamState)
    checks.same_structure(updates, state.adam.nu)
    if not paths.flatten(updates):
      adam = self.adam.update(updates, state.adam)[1]
      return updates, state._replace(adam=adam) if warm_start is None else state
    source = None
    if curvature_gradients is not None:
      source = without_faults(checks.curvature_leaves(curvature_gradients, updates))
    layers = self._layers(self.partition(updates)).blocks
    states.same_layers(layers, state.curvature, state.adam.nu)
    with jax.default_matmul_precision(self.precision):
      if warm_start is not None:
        warm = functools.partial(self.warm, layers)
        return layout.update(warm, updates, state, source, warm_start)
      step = functools.partial(self.step, layers)
      return layout.update(step, updates, state, source)

  def step(
    self,
    layers: Layers,
    g: optax.Updates,
    state: MbfAdamState,
    source: paths.Leaves | None,
  ) -> tuple[optax.Updates, MbfAdamState]:
    """The update rule; statistics see ``source`` where it is not the gradient."""
    k, beta = state.adam.count, self.curvature_ema
    usable = without_faults(g)
    seen = paths.flatten(usable) if source is None else source
    a, adam = self.adam.update(usable, state.adam)
    r = self._foretold(layers, usable, state)

    def statistics(now: tuple[States, Array]) -> tuple[States, Array]:
      return layers.accumulate(now[0], seen, beta), corrected_by(beta, now[1])

    now = layers.of_these(state.curvature), state.bias_correction
    G, c = every(self.curvature_update_period, k, statistics, now)
    R = when(self._is_due(k), lambda G: self._powers(layers, G, c, k, r), G)

    momentum = moments.nesterov if self.nesterov else moments.plain
    m = paths.flatten(momentum(adam, usable, self.b1))
    update = paths.flatten(a)
    pieces = layers.pieces(m), layers.pieces(update)
    update |= layers.leaves(layers.each(_resized, layers.in_order(R), *pieces))
    update = paths.unflatten(g, update)
    update = jax.tree.map(lambda u, g: u.astype(g.dtype), update, g)
    return update, MbfAdamState(adam, c, r, R)

  def warm(
    self,
    layers: Layers,
    g: optax.Updates,
    state: MbfAdamState,
    source: paths.Leaves | None,
    instruction: WarmStart,
  ) -> tuple[optax.Updates, MbfAdamState]:
    """One call of a warm start: an average's next entry, or the final refresh."""
    nothing, average = jax.tree.map(jnp.zeros_like, g), instruction.average
    if average is not None:
      seen = paths.flatten(without_faults(g)) if source is None else source
      return nothing, state._replace(
        bias_correction=corrected_by(average, state.bias_correction),
        curvature=layers.accumulate(state.curvature, seen, average),
      )
    k, c = state.adam.count, state.bias_correction
    R = self._powers(layers, state.curvature, c, k, state.foretold)
    return nothing, state._replace(curvature=R)

  def _layers(self, readings: Any) -> Layers:
    chosen = [choice for r in readings for choice in for_mbf_adam(r)]
    return Layers.of(chosen, self.inverse_dtype)

  def _foretold(
    self, layers: Layers, g: optax.Updates, state: MbfAdamState
  ) -> Averages:
    """Averages of the foretold share by layer, with this gradient's."""
    leaves, before = paths.flatten(g), paths.flatten(state.adam.mu)
    k = state.adam.count
    c = moments.correction(self.b1, jnp.maximum(k, 1), jnp.result_type(float))

    def share(estimator: Estimator, g: Pieces, m: Pieces) -> Float[Array, "*stack"]:
      return foretold(g, m, c, len(estimator.reading.stack_shape))

    averages, weight = {}, weight_of_the_next(k)
    shares = layers.each(share, layers.pieces(leaves), layers.pieces(before))
    for path, new in zip(layers.paths, shares, strict=True):
      averages[path] = averaged(state.foretold[path], new, weight)
    return averages

  def _is_due(self, k: Int[Array, ""]) -> Bool[Array, ""] | Literal[True]:
    """At ``t = k + 1`` of 1, 2, 4, 8, ... before ``T2``, and where ``T2`` divides k."""
    if is_always(self.inverse_update_period):
      return True
    period = devices.replicated(self.inverse_update_period, k.dtype)
    return (k % period == 0) | (((k + 1) & k) == 0) & (k + 1 < period)

  def _powers(
    self,
    layers: Layers,
    G: States,
    c: Float[Array, ""],
    k: Int[Array, ""],
    r: Averages,
  ) -> States:
    """``R = F (A + lambda I)^(-exponent (1 - sqrt(kappa))) F`` of every layer."""
    largest = {INPUTS: self.exponent, OUTPUTS: self.output_exponent}
    largest = {side: _at(value, k) for side, value in largest.items()}
    regularize = shrunk(c, self.curvature_ema, _at(self.damping, k))

    def powers(
      systems: list[Statistics], previous: list[Float[Array, "..."]]
    ) -> list[Results]:
      p = acting(layers, largest, r)
      return batches.row_scaled_powers(systems, regularize, p, previous, self.inverse)

    return layers.refresh(G, lambda e, state: e.statistics(state), powers)


def _resized(estimator: Estimator, state: Any, m: Pieces, a: Pieces) -> Pieces:
  """``d |a| / |d|`` of one layer, with ``d = R m``; norms are never zero."""
  d = estimator.precondition(computed(estimator, state), m, unregularized)
  norms = zip(estimator.norms(a), estimator.norms(d), strict=True)
  factors = [wanted / own for wanted, own in norms]
  return [v * f for v, f in zip(d, factors, strict=True)]


def _at(value: optax.ScalarOrSchedule, count: Int[Array, ""]) -> jax.typing.ArrayLike:
  """A hyperparameter, or the value of its schedule."""
  return value(count) if callable(value) else value
