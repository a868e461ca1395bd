"""The two optimizers: the paper's method, and the drop-in replacement for Adam."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from mbf_optax import checks
from mbf_optax.grafting import graft
from mbf_optax.layers import Partition
from mbf_optax.refresh import Method
from mbf_optax.transform import scale_by_mbf

WeightDecayMask = Any | Callable[[optax.Params], Any] | None


def mbf(
  learning_rate: optax.ScalarOrSchedule,
  damping: optax.ScalarOrSchedule = 3e-3,
  momentum: jax.typing.ArrayLike = 0.9,
  curvature_ema: jax.typing.ArrayLike = 0.9,
  curvature_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 2,
  weight_decay: jax.typing.ArrayLike = 0.0,
  weight_decay_mask: WeightDecayMask = None,
  partition: Partition | None = None,
  inverse: Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  staggered: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""The Mini-Block Fisher method, as the paper gives it.

  The update is :math:`-\eta (P m + \gamma W)`: momentum preconditioned by
  :func:`scale_by_mbf`, and decoupled weight decay. Its learning rates are far smaller
  than Adam's and depend on the damping (the paper's best lie between 1e-6 and 1e-3);
  :func:`mbf_adam` takes Adam's.

  Args:
    learning_rate: :math:`\eta`, a number or a schedule of it.
    damping: :math:`\lambda`, in units of a squared gradient; positive.
    momentum: decay of the heavy-ball momentum, in ``[0, 1)``.
    curvature_ema: decay of the statistics, in ``[0, 1)``.
    curvature_update_period: updates between statistics, the paper's :math:`T_1`.
    inverse_update_period: updates between inverses, the paper's :math:`T_2`.
    weight_decay: :math:`\gamma`, decoupled: multiplied by the learning rate and not
      preconditioned.
    weight_decay_mask: tree of booleans, or a function from parameters to one: which
      parameters decay.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: how matrices are inverted, see :func:`scale_by_mbf`.
    inverse_dtype: in which inverses are kept, see :func:`scale_by_mbf`.
    staggered: whether layers take turns to refresh, see :func:`scale_by_mbf`.

  Returns:
    The transformation; its update takes ``curvature_gradients``, see
    :func:`scale_by_mbf`, and needs ``params`` only for weight decay.

  Raises:
    ValueError: for a hyperparameter out of its range.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax, optax
    >>> tx = mbf_optax.mbf(learning_rate=0.01)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    >>> loss = lambda p: optax.tree.norm(p, squared=True)
    >>> state = tx.init(params)
    >>> for _ in range(20):
    ...   updates, state = tx.update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 6.5)  # it was 8
    True

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, Algorithm 2.
  """
  return optax.chain(
    scale_by_mbf(
      damping=damping,
      momentum=momentum,
      curvature_ema=curvature_ema,
      curvature_update_period=curvature_update_period,
      inverse_update_period=inverse_update_period,
      partition=partition,
      inverse=inverse,
      inverse_dtype=inverse_dtype,
      staggered=staggered,
    ),
    _decoupled_weight_decay(weight_decay, weight_decay_mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def mbf_adam(
  learning_rate: optax.ScalarOrSchedule,
  damping: optax.ScalarOrSchedule = 0.1,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  curvature_ema: jax.typing.ArrayLike = 0.9,
  curvature_update_period: jax.typing.ArrayLike = 5,
  inverse_update_period: jax.typing.ArrayLike = 20,
  weight_decay: jax.typing.ArrayLike = 0.0,
  weight_decay_mask: WeightDecayMask = None,
  partition: Partition | None = None,
  inverse: Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  staggered: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """MBF's direction at Adam's length: the drop-in for ``optax.adam`` and ``adamw``.

  Every layer moves as far as Adam would move it, in the direction of MBF with relative
  damping, so a learning rate that suits Adam suits this. Norms, embeddings and biases
  of convolutions move exactly as under Adam.

  Args:
    learning_rate: as for Adam, a number or a schedule of it.
    damping: relative damping, a multiple of each layer's mean squared gradient; has no
      unit and rarely needs tuning.
    b1: Adam's first decay, and the decay of MBF's momentum; in ``[0, 1)``.
    b2: Adam's second decay, in ``[0, 1)``.
    eps: Adam's epsilon.
    curvature_ema: decay of MBF's statistics, in ``[0, 1)``.
    curvature_update_period: updates between statistics. Where convolutions take most
      of a step, 1 here and 2 below cost next to nothing.
    inverse_update_period: updates between inverses.
    weight_decay: decoupled weight decay, as in ``optax.adamw``.
    weight_decay_mask: tree of booleans, or a function from parameters to one: which
      parameters decay.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: how matrices are inverted, see :func:`scale_by_mbf`.
    inverse_dtype: in which inverses are kept, see :func:`scale_by_mbf`.
    staggered: whether layers take turns to refresh, see :func:`scale_by_mbf`.

  Returns:
    The transformation; its update takes ``curvature_gradients``, see
    :func:`scale_by_mbf`, and needs ``params`` only for weight decay.

  Raises:
    ValueError: for a hyperparameter out of its range.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax, optax
    >>> tx = mbf_optax.mbf_adam(learning_rate=0.1)  # was optax.adam(learning_rate=0.1)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    >>> loss = lambda p: optax.tree.norm(p, squared=True)
    >>> state = tx.init(params)
    >>> for _ in range(20):
    ...   updates, state = tx.update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 1)
    True

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, for the direction; Agarwal et al.,
    `Disentangling Adaptive Gradient Methods from Learning Rates
    <https://arxiv.org/abs/2002.11803>`_, 2020, for grafting.
  """
  checks.decay("b1", b1)
  checks.decay("b2", b2)
  direction = scale_by_mbf(
    damping=damping,
    relative_damping=True,
    momentum=b1,
    curvature_ema=curvature_ema,
    curvature_update_period=curvature_update_period,
    inverse_update_period=inverse_update_period,
    partition=partition,
    inverse=inverse,
    inverse_dtype=inverse_dtype,
    staggered=staggered,
  )
  return optax.chain(
    graft(direction, optax.scale_by_adam(b1=b1, b2=b2, eps=eps), partition),
    _decoupled_weight_decay(weight_decay, weight_decay_mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def _decoupled_weight_decay(
  weight_decay: jax.typing.ArrayLike, mask: WeightDecayMask
) -> optax.GradientTransformation:
  """``optax.add_decayed_weights`` that needs no parameters where nothing decays."""
  decay = optax.add_decayed_weights(weight_decay, mask)

  def update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    if params is None and isinstance(weight_decay, float | int) and weight_decay == 0:
      return updates, state
    if params is None:
      raise ValueError(
        "mbf_optax: weight decay needs the parameters; call update(gradients, state,"
        " params). Under optax.inject_hyperparams it does at any value; name it in"
        " static_args if nothing decays."
      )
    return decay.update(updates, state, params)

  return optax.GradientTransformation(decay.init, update)
