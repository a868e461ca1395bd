"""Statistics from a pass over the data before the first step (section 11.1.5)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbf_optax._optimizers.found import find_states, is_state, plain
from mbf_optax._optimizers.instruction import WarmStart


def warm_start(
  tx: optax.GradientTransformation,
  state: optax.OptState,
  params: optax.Params,
  gradients: Iterable[optax.Updates],
) -> optax.OptState:
  """Starts the statistics of MBF from the mean over a pass of mini-batches.

  Every block's statistics become the mean of ``g_b g_b^T`` over the gradients, and the
  inverses are refreshed. Momentum, step counts and the states of other transformations
  stay as they are. Gradients pass through whatever precedes MBF in a chain, as they
  will in training. ``"low_rank"`` layers keep the last ``rank`` gradients.

  Args:
    tx: a transformation with :func:`scale_by_mbf` or :func:`scale_by_mbf_adam`
      somewhere in it: :func:`mbf`, :func:`mbf_adam`, or a chain or wrapper of them.
    state: its state, usually fresh from ``tx.init(params)``; that of an
      ``nnx.Optimizer`` (its ``opt_state``) is taken as it is.
    params: the parameters at which the gradients were taken.
    gradients: mini-batch gradients, trees like ``params``; a generator will do.

  Returns:
    The state to train with.

  Raises:
    ValueError: if there are no gradients, or no MBF state in ``state``, or one within
      ``optax.MultiSteps``, which hands on only every so many gradients: give the inner
      transformation and its state instead.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    >>> tx = mbf_optax.mbf(0.01)
    >>> gradients = [jax.tree.map(jnp.ones_like, params)]
    >>> state = mbf_optax.warm_start(tx, tx.init(params), params, gradients)
    >>> print(state[0].bias_correction)
    1.0

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, section 11.1.5.
  """
  state, restore = plain(state)
  find_states("warm_start", state)
  if any(map(_is_accumulating, jax.tree.leaves(state, is_leaf=_is_accumulating))):
    raise ValueError(
      "warm_start: optax.MultiSteps holds gradients back; warm up what it wraps,"
      " state._replace(inner_opt_state=warm_start(inner, state.inner_opt_state, ...))."
    )
  tx = optax.with_extra_args_support(tx)

  @jax.jit
  def advance(
    params: optax.Params,
    gradient: optax.Updates,
    state: Any,
    average: jax.Array | None,
  ) -> Any:
    _, new = tx.update(gradient, state, params, warm_start=WarmStart(average))
    return _adopt(state, new)

  gradient = None
  for index, gradient in enumerate(gradients):
    state = advance(params, gradient, state, jnp.asarray(index / (index + 1)))
  if gradient is None:
    raise ValueError(
      "warm_start: gradients is empty; pass at least one mini-batch gradient."
    )
  return restore(advance(params, gradient, state, None))


def _is_accumulating(node: Any) -> bool:
  return isinstance(node, optax.MultiStepsState)


def _adopt(state: Any, new: Any) -> Any:
  """``state`` with its MBF states taken from ``new`` and everything else kept."""
  return jax.tree.map(
    lambda old, fresh: fresh if is_state(old) else old, state, new, is_leaf=is_state
  )
