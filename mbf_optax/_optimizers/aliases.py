"""The two optimizers: the paper's method, and the drop-in for Adam."""

import jax
import optax

from mbf_optax._linalg.methods import Method
from mbf_optax._linalg.products import Precision
from mbf_optax._optimizers.adam import scale_by_mbf_adam
from mbf_optax._optimizers.decay import Mask, decoupled_weight_decay
from mbf_optax._optimizers.fisher import scale_by_mbf
from mbf_optax._partition.layer import Partition


def mbf(
  learning_rate: optax.ScalarOrSchedule,
  damping: optax.ScalarOrSchedule = 3e-3,
  momentum: jax.typing.ArrayLike = 0.9,
  *,
  curvature_ema: jax.typing.ArrayLike = 0.9,
  curvature_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 2,
  weight_decay: jax.typing.ArrayLike = 0.0,
  mask: Mask = None,
  partition: Partition | None = None,
  inverse: Method = "sweep",
  inverse_dtype: jax.typing.DTypeLike | None = None,
  precision: Precision = "highest",
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
    mask: tree of booleans, or a function from parameters to one: which
      parameters decay.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: how matrices are inverted, see :func:`scale_by_mbf`.
    inverse_dtype: in which inverses are kept, see :func:`scale_by_mbf`.
    precision: of products with matrices, see :func:`scale_by_mbf`.

  Returns:
    The transformation; its update takes ``curvature_gradients``, see
    :func:`scale_by_mbf`, and needs ``params`` only for weight decay.

  Raises:
    ValueError: for a hyperparameter out of its range.
    TypeError: for one of a wrong type.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax, optax
    >>> tx = mbf_optax.mbf(learning_rate=0.01)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    >>> loss = lambda p: optax.tree.norm(p, squared=True)
    >>> state, update = tx.init(params), jax.jit(tx.update)
    >>> for _ in range(20):
    ...   updates, state = update(jax.grad(loss)(params), state, params)
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
      precision=precision,
    ),
    decoupled_weight_decay(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def mbf_adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  eps_root: jax.typing.ArrayLike = 0.0,
  mu_dtype: jax.typing.DTypeLike | None = None,
  weight_decay: jax.typing.ArrayLike = 0.0,
  mask: Mask = None,
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
  """Adam with a matrix for every mini-block: the drop-in for ``adam`` and ``adamw``.

  Takes every call of ``optax.adam`` or ``optax.adamw`` with the name changed,
  positional arguments included, and Adam's learning rate. Every layer moves as far as
  Adam would move it, in a direction that knows how weights vary together; see
  :func:`scale_by_mbf_adam`. Norms, embeddings, biases of convolutions and dense layers
  of fewer than five outputs, or of more than 32 inputs for each, move exactly as under
  Adam.

  Args:
    learning_rate: as for Adam, a number or a schedule.
    b1: Adam's first decay, in ``[0, 1)``.
    b2: Adam's second decay, in ``[0, 1)``.
    eps: Adam's epsilon.
    eps_root: Adam's epsilon under the root.
    mu_dtype: dtype of the first moment; ``None`` is float32 or wider.
    weight_decay: decoupled weight decay, as in ``optax.adamw``, whose default is 1e-4.
    mask: tree of booleans, or a function from parameters to one: which parameters
      decay.
    nesterov: whether Adam takes Nesterov's momentum; a Python boolean.
    damping: relative to the matrices' mean diagonal; see :func:`scale_by_mbf_adam`.
    exponent: of the inverse, where the gradient does not persist; 0 is Adam's momentum
      (rows of very uneven scales are scaled), 1 the paper's inverse; a number or a
      schedule.
    output_exponent: the same for the outputs of ``"two_sided"`` layers.
    curvature_ema: decay of the block statistics, in ``[0, 1)``.
    curvature_update_period: steps between statistics.
    inverse_update_period: steps between refreshes of the preconditioners.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    inverse: how matrices are inverted, see :func:`scale_by_mbf_adam`.
    inverse_dtype: in which preconditioners are kept, see :func:`scale_by_mbf_adam`.
    precision: of products with matrices, see :func:`scale_by_mbf_adam`.

  Returns:
    The transformation; its update takes ``curvature_gradients``, see
    :func:`scale_by_mbf_adam`, and needs ``params`` only for weight decay.

  Raises:
    ValueError: for a hyperparameter out of its range.
    TypeError: for one of a wrong type.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax, optax
    >>> tx = mbf_optax.mbf_adam(0.1)  # was optax.adam(0.1)
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
    >>> loss = lambda p: optax.tree.norm(p, squared=True)
    >>> state, update = tx.init(params), jax.jit(tx.update)
    >>> for _ in range(20):
    ...   updates, state = update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 2)  # it was 20
    True

  References:
    As :func:`scale_by_mbf_adam`.
  """
  return optax.chain(
    scale_by_mbf_adam(
      b1,
      b2,
      eps,
      eps_root,
      mu_dtype,
      nesterov=nesterov,
      damping=damping,
      exponent=exponent,
      output_exponent=output_exponent,
      curvature_ema=curvature_ema,
      curvature_update_period=curvature_update_period,
      inverse_update_period=inverse_update_period,
      partition=partition,
      inverse=inverse,
      inverse_dtype=inverse_dtype,
      precision=precision,
    ),
    decoupled_weight_decay(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
