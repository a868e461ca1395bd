"""Controls: the baselines' directions at Adam's length.

``mbf_adam`` is MBF's direction grafted on Adam. These are the same with another
direction each, to tell what the mini-blocks gain from what the grafting gains.
"""

from typing import Any

import jax
import optax

from benchmarks.baselines import common
from benchmarks.baselines.kfac import scale_by_kfac
from benchmarks.baselines.shampoo import scale_by_shampoo
from benchmarks.baselines.soap import scale_by_soap
from mbf_optax import graft


def on_adam(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  weight_decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Every layer moves along ``direction``, as far as Adam would move it.

  Args:
    direction: a transformation that does not flip the gradient's sign.
    learning_rate: as for Adam.
    b1: Adam's first decay.
    b2: Adam's second decay.
    eps: Adam's epsilon.
    weight_decay: decoupled weight decay.

  Returns:
    The transformation. Extra arguments of its update reach ``direction``.
  """
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  return common.descend(graft(direction, adam), learning_rate, weight_decay)


def momentum_adam(
  learning_rate: optax.ScalarOrSchedule,
  momentum: jax.typing.ArrayLike = 0.9,
  weight_decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """SGD's heavy-ball momentum at Adam's length."""
  direction = optax.trace(momentum)
  return on_adam(direction, learning_rate, weight_decay=weight_decay)


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


def soap_adam(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: jax.typing.ArrayLike = 0.0,
  **settings: Any,
) -> optax.GradientTransformationExtraArgs:
  """SOAP at Adam's length; ``settings`` are those of ``scale_by_soap``."""
  direction = scale_by_soap(**settings)
  return on_adam(direction, learning_rate, weight_decay=weight_decay)
