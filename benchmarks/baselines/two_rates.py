"""``mbf_adam`` as muon is run: one rate for matrices, another for everything else."""

import functools
from typing import Any

import jax
import optax

import mbf_optax
from benchmarks.baselines.muon import matrices


def mbf_adam_two_rates(
  learning_rate: optax.ScalarOrSchedule,
  other_learning_rate: optax.ScalarOrSchedule | None = None,
  b2: jax.typing.ArrayLike = 0.999,
  weight_decay: jax.typing.ArrayLike = 0.0,
  other_weight_decay: jax.typing.ArrayLike | None = None,
  head: str | None = None,
  **settings: Any,
) -> optax.GradientTransformation:
  """``mbf_adam`` with Nesterov's momentum, and NAdam for what muon leaves to it.

  Args:
    learning_rate: of the matrices.
    other_learning_rate: of embeddings, norms, biases and the head; ``None`` is the
      same.
    b2: Adam's second decay, of both.
    weight_decay: decoupled, of the matrices.
    other_weight_decay: of all others; ``None`` is the same.
    head: name of the outermost module that makes logits; ``None`` is no such module.
    **settings: of :func:`mbf_optax.mbf_adam`.

  Returns:
    The transformation.
  """
  if other_learning_rate is None:
    other_learning_rate = learning_rate
  if other_weight_decay is None:
    other_weight_decay = weight_decay
  kinds = {
    "matrix": mbf_optax.mbf_adam(
      learning_rate, b2=b2, weight_decay=weight_decay, nesterov=True, **settings
    ),
    "other": optax.nadamw(other_learning_rate, b2=b2, weight_decay=other_weight_decay),
  }
  return optax.partition(kinds, functools.partial(_kinds, head=head))


def _kinds(params: optax.Params, head: str | None) -> Any:
  return jax.tree.map(
    lambda dimensions: "other" if dimensions is None else "matrix",
    matrices(params, head),
    is_leaf=lambda node: (
      node is None or isinstance(node, optax.contrib.MuonDimensionNumbers)
    ),
  )
