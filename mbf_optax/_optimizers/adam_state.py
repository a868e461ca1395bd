"""The state of ``mbf_adam``."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mbf_optax._optimizers import state as states
from mbf_optax._optimizers.layers import Layers, States
from mbf_optax._tree import paths
from mbf_optax._tree.shapes import Array, Float


class MbfAdamState(NamedTuple):
  """State of :func:`scale_by_mbf_adam`: arrays only.

  Attributes:
    adam: optax's own state of Adam, ``count``, ``mu`` and ``nu``, float32 or wider (or
      ``mu`` in ``mu_dtype``).
    bias_correction: ``()``, the ``c`` of the block statistics: ``1 - curvature_ema **
      s`` after ``s`` statistics from a zero start, 1 after a warm start.
    foretold: by the path of every layer with matrices, ``(*stack,)``, the moving
      average of the foretold share ``r``; clipped to ``[0, 1]`` it is ``kappa``.
    curvature: by the same paths, a ``BlockState`` or ``TwoSidedState``. Both are
      scalars for a tree without leaves.
  """

  adam: optax.ScaleByAdamState
  bias_correction: Float[Array, ""]
  foretold: dict[str, Float[Array, "*stack"]]
  curvature: States


def init_state(
  adam: optax.GradientTransformation, layers: Layers, params: optax.Params
) -> MbfAdamState:
  """State before the first gradient."""
  blocks = layers.blocks
  leaves = paths.flatten(params)
  averages = {
    e.reading.path: jnp.ones(e.reading.stack_shape) for e in blocks.estimators
  }
  return MbfAdamState(
    adam=adam.init(states.zeros(params)),
    bias_correction=jnp.zeros(()),
    foretold=states.by_layer(averages, leaves),
    curvature=states.by_layer(blocks.init(leaves), leaves),
  )
