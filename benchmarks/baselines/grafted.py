"""Controls: directions of one method at the length that Adam would move.

``mbf_adam`` moves every mini-block as far as Adam would. These do the same with other
directions, to tell what its directions gain from what the lengths gain.
"""

from typing import Any, Literal

import jax
import optax

from benchmarks.baselines import common
from benchmarks.baselines.kfac import scale_by_kfac
from benchmarks.baselines.shampoo import scale_by_shampoo
from mbf_optax import graft, scale_by_mbf

Lengths = Literal["layer", "block"]


def on_adam(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  weight_decay: jax.typing.ArrayLike = 0.0,
  lengths: Lengths = "layer",
) -> optax.GradientTransformationExtraArgs:
  """Every layer moves along ``direction``, as far as Adam would move it.

  Args:
    direction: a transformation that does not flip the gradient's sign.
    learning_rate: as for Adam.
    b1: Adam's first decay.
    b2: Adam's second decay.
    eps: Adam's epsilon.
    weight_decay: decoupled weight decay.
    lengths: whether a layer moves as far as under Adam, or every mini-block.

  Returns:
    The transformation. Extra arguments of its update reach ``direction``.
  """
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  grafted = graft(direction, adam, lengths=lengths)
  return common.descend(grafted, learning_rate, weight_decay)


def momentum_adam(
  learning_rate: optax.ScalarOrSchedule,
  momentum: jax.typing.ArrayLike = 0.9,
  weight_decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """SGD's heavy-ball momentum at Adam's length."""
  direction = optax.trace(momentum)
  return on_adam(direction, learning_rate, weight_decay=weight_decay)


def mbf_on_adam(
  learning_rate: optax.ScalarOrSchedule,
  damping: jax.typing.ArrayLike = 0.1,
  weight_decay: jax.typing.ArrayLike = 0.0,
  lengths: Lengths = "layer",
  **settings: Any,
) -> optax.GradientTransformationExtraArgs:
  """The paper's inverse at Adam's length: an exponent of one at every step.

  The damping is relative to the mean diagonal of the statistics; ``settings`` are those
  of ``scale_by_mbf``.
  """
  direction = scale_by_mbf(damping, relative_damping=True, **settings)
  return on_adam(direction, learning_rate, weight_decay=weight_decay, lengths=lengths)


def shampoo_adam(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: jax.typing.ArrayLike = 0.0,
  **settings: Any,
) -> optax.GradientTransformationExtraArgs:
  """Shampoo at Adam's length; ``settings`` are those of ``scale_by_shampoo``."""
  direction = scale_by_shampoo(**settings)
  return on_adam(direction, learning_rate, weight_decay=weight_decay)


def kfac_adam(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: jax.typing.ArrayLike = 0.0,
  **settings: Any,
) -> optax.GradientTransformationExtraArgs:
  """KFAC at Adam's length; ``settings`` are those of ``scale_by_kfac``."""
  direction = scale_by_kfac(**settings)
  return on_adam(direction, learning_rate, weight_decay=weight_decay)
