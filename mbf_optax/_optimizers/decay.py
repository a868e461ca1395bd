"""Decoupled weight decay that needs no parameters where nothing decays."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from mbf_optax._tree import checks

Mask = Any | Callable[[optax.Params], Any] | None
"""A tree of booleans like the parameters, or a function from them to one."""


def decoupled_weight_decay(
  weight_decay: jax.typing.ArrayLike, mask: Mask
) -> optax.GradientTransformation:
  """``optax.add_decayed_weights`` that needs no parameters where nothing decays."""
  checks.mask(mask)
  decay = optax.add_decayed_weights(weight_decay, mask)

  def update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    if params is None and checks.is_zero(weight_decay):
      return updates, state
    if params is None:
      raise ValueError(
        "mbf_optax: weight decay needs the parameters; call update(gradients, state,"
        " params). Under optax.inject_hyperparams it does at any value; name it in"
        " static_args if nothing decays."
      )
    return decay.update(updates, state, params)

  return optax.GradientTransformation(decay.init, update)
