"""Muon for networks with convolutions and attention, in Flax's layout."""

import functools
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

_KERNEL = {2: MuonDimensionNumbers(0, 1), 4: MuonDimensionNumbers((0, 1, 2), 3)}
_HEADS_OUT = MuonDimensionNumbers(0, (1, 2))  # of queries, keys and values
_HEADS_IN = MuonDimensionNumbers((0, 1), 2)  # of attention's output


def muon(
  learning_rate: optax.ScalarOrSchedule,
  other_learning_rate: optax.ScalarOrSchedule | None = None,
  weight_decay: jax.typing.ArrayLike = 0.0,
  other_weight_decay: jax.typing.ArrayLike | None = None,
  head: str | None = None,
  beta: jax.typing.ArrayLike = 0.95,
  b2: jax.typing.ArrayLike = 0.999,
  consistent_rms: float | None = None,
) -> optax.GradientTransformation:
  """``optax.contrib.muon`` that reads every kernel as a matrix from inputs to outputs.

  By itself optax's takes arrays of two axes alone, embeddings among them, and leaves
  convolutions and attention to Adam. Here Adam has embeddings, norms, biases and the
  head. The weights of both kinds decay.

  Args:
    learning_rate: of the matrices.
    other_learning_rate: of all others; ``None`` is the same.
    weight_decay: decoupled, of the matrices.
    other_weight_decay: of all others; ``None`` is the same.
    head: name of the outermost module that makes logits; ``None`` is no such module.
    beta: decay of the matrices' momentum.
    b2: Adam's second decay, of all others.
    consistent_rms: root mean square that the matrices' updates have; ``None`` is
      optax's own scaling.

  Returns:
    The transformation.
  """
  if other_weight_decay is None:
    other_weight_decay = weight_decay
  return optax.contrib.muon(
    learning_rate,
    beta=beta,
    adam_b2=b2,
    consistent_rms=consistent_rms,
    weight_decay=weight_decay,
    adam_weight_decay=other_weight_decay,
    adam_learning_rate=other_learning_rate,
    muon_weight_dimension_numbers=functools.partial(matrices, head=head),
  )


def matrices(params: optax.Params, head: str | None = None) -> Any:
  """Which axes of each kernel are inputs and outputs, ``None`` for other arrays."""

  def read(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
    keys = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    if keys[-1] != "kernel" or keys[0] == head:
      return None
    if leaf.ndim == 3:
      return _HEADS_IN if keys[-2] == "out" else _HEADS_OUT
    return _KERNEL[leaf.ndim]

  return jax.tree_util.tree_map_with_path(read, params)
