"""KFAC for dense and convolution layers, as the paper runs it (appendix 11.1.4).

:func:`capture` collects the Kronecker factors, :func:`scale_by_kfac` preconditions:

    captured = capture(loss, params, batch)
    updates, state = tx.update(
      captured.gradients, state, params, factors=captured.factors
    )

With the data's labels in the loss the factors are those of the *empirical* Fisher
matrix, at the price of no second pass, and this is what the lines above do. The paper's
own KFAC draws labels from the model: :func:`linearize` the outputs, and pull back two
cotangents, the loss's at the data's labels and at sampled ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from benchmarks.baselines import common
from benchmarks.baselines.kfac_capture import (
  Captured,
  Factors,
  Linearized,
  capture,
  linearize,
)
from benchmarks.baselines.kfac_inverse import (
  Inverse,
  Split,
  identity,
  invert,
  multiply,
)

__all__ = [
  "Captured",
  "Factors",
  "KfacState",
  "Linearized",
  "capture",
  "kfac",
  "linearize",
  "scale_by_kfac",
]


class KfacState(NamedTuple):
  """State of :func:`scale_by_kfac`.

  Attributes:
    count: ``()`` int32, number of updates made.
    weight: ``()``, total weight of the moving averages, the bias correction.
    momentum: heavy-ball momentum, like the parameters.
    factors: moving averages of the Kronecker factors, by the layer's path.
    inverses: inverses of their damped product, by the layer's path.
  """

  count: jax.Array  # type: ignore[assignment]
  weight: jax.Array
  momentum: optax.Params
  factors: dict[str, Factors]
  inverses: dict[str, Inverse]


def scale_by_kfac(
  damping: jax.typing.ArrayLike = 0.03,
  split: Split = "equal",
  momentum: jax.typing.ArrayLike = 0.9,
  factor_ema: jax.typing.ArrayLike = 0.9,
  factor_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 20,
  layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Scales layers by the inverse of their Kronecker-factored Fisher matrix.

  With a layer's kernel and bias as one matrix :math:`W` of inputs by outputs,

  .. math::
    m &\leftarrow \mu m + \nabla W \\
    A, G &\leftarrow \beta A + (1 - \beta) \hat A, \ \beta G + (1 - \beta) \hat G
      \quad\text{every } T_1 \text{ updates} \\
    d &= (A / c + \pi \sqrt\lambda I)^{-1} \, m \,
      (G / c + \pi^{-1} \sqrt\lambda I)^{-1}

  with inverses renewed every :math:`T_2` updates and :math:`c` correcting the averages
  for their start at zero. All other parameters (norms, embeddings) move along the
  momentum, as in the paper.

  Args:
    damping: :math:`\lambda`.
    split: ``"equal"``, :math:`\pi = 1`, the paper's choice for autoencoders;
      ``"trace"``, Martens and Grosse's :math:`\pi^2`, the ratio of the mean diagonals
      of ``A`` and ``G``; or ``"none"``, the paper's choice for convnets: the inverse
      is :math:`(A \otimes G + \lambda I)^{-1}`, by LAPACK's ``eigh`` of the factors.
    momentum: :math:`\mu`.
    factor_ema: :math:`\beta`.
    factor_update_period: :math:`T_1`.
    inverse_update_period: :math:`T_2`.
    layers: paths of the layers that have factors; ``None`` is every module with a
      ``kernel`` of rank 2 or 4, dense layers and convolutions of images.

  Returns:
    The transformation; its update needs the argument ``factors``, the
    ``Captured.factors`` of :func:`capture`, or a function of no arguments that computes
    them, which is then part of the updates that take them and of no other.

  References:
    Bahamou, Goldfarb and Ren, 2023, appendix 11.1.4; Martens and Grosse, 2015,
    section 6.3 for the split.
  """
  if split not in get_args(Split):
    raise ValueError(f"kfac: split is {split!r}; use one of {get_args(Split)}.")

  def init(params: optax.Params) -> KfacState:
    leaves = common.flatten(common.zeros(params))
    factors = {path: _zeros(path, leaves) for path in _layers(leaves, layers)}
    return KfacState(
      count=jnp.zeros((), jnp.int32),
      weight=jnp.zeros(()),
      momentum=common.zeros(params),
      factors=factors,
      inverses={path: identity(pair, split) for path, pair in factors.items()},
    )

  def update(
    updates: optax.Updates,
    state: KfacState,
    params: optax.Params | None = None,
    *,
    factors: dict[str, Factors] | Callable[[], dict[str, Factors]],
    **extra_args: Any,
  ) -> tuple[optax.Updates, KfacState]:
    del params, extra_args
    given = factors if callable(factors) else lambda: factors
    missing = state.factors.keys() - jax.eval_shape(given).keys()
    if missing:
      raise ValueError(
        f"No factors for the layers {sorted(missing)}; name the layers that have them"
        " in `layers`."
      )
    velocity = common.heavy_ball(momentum, state.momentum, updates)

    def accumulate(averages: tuple) -> tuple:
      weight, old = averages
      found = given()
      new = {path: found[path] for path in old}
      weight = common.average(factor_ema, weight, jnp.ones_like(weight))
      return weight, jax.tree.map(partial(common.average, factor_ema), old, new)

    weight, averages = common.every(
      factor_update_period, state.count, accumulate, (state.weight, state.factors)
    )
    inverses = common.every(
      inverse_update_period,
      state.count,
      lambda inverses: invert(_means(averages, weight), inverses, damping, split),
      state.inverses,
    )
    directions = common.flatten(velocity)
    for path, inverse in inverses.items():
      directions |= _precondition(path, directions, inverse)
    count = optax.safe_increment(state.count)
    return common.like(updates, directions), KfacState(
      count, weight, velocity, averages, inverses
    )

  return optax.GradientTransformationExtraArgs(init, update)


def kfac(
  learning_rate: optax.ScalarOrSchedule,
  damping: jax.typing.ArrayLike = 0.03,
  split: Split = "equal",
  momentum: jax.typing.ArrayLike = 0.9,
  factor_ema: jax.typing.ArrayLike = 0.9,
  factor_update_period: jax.typing.ArrayLike = 1,
  inverse_update_period: jax.typing.ArrayLike = 20,
  weight_decay: jax.typing.ArrayLike = 0.0,
  layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """KFAC with decoupled weight decay, see :func:`scale_by_kfac`."""
  direction = scale_by_kfac(
    damping,
    split,
    momentum,
    factor_ema,
    factor_update_period,
    inverse_update_period,
    layers,
  )
  return common.descend(direction, learning_rate, weight_decay)


def _layers(leaves: common.Leaves, layers: Sequence[str] | None) -> list[str]:
  if layers is not None:
    return list(layers)
  return [
    path.removesuffix("kernel").removesuffix("/")
    for path, leaf in leaves.items()
    if path.split("/")[-1] == "kernel" and leaf.ndim in (2, 4)
  ]


def _names(layer: str, leaves: common.Leaves) -> list[str]:
  """Paths of the layer's kernel and, if there is one, of its bias."""
  prefix = f"{layer}/" if layer else ""
  return [p for p in (f"{prefix}kernel", f"{prefix}bias") if p in leaves]


def _matrix(layer: str, leaves: common.Leaves) -> jax.Array:
  """The layer's kernel and bias as ``(inputs, outputs)``, the bias a last input."""
  rows = [leaves[path] for path in _names(layer, leaves)]
  return jnp.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])


def _zeros(layer: str, leaves: common.Leaves) -> Factors:
  matrix = _matrix(layer, leaves)
  return Factors(*(jnp.zeros((n, n), matrix.dtype) for n in matrix.shape))


def _means(averages: dict[str, Factors], weight: jax.Array) -> dict[str, Factors]:
  """Moving averages corrected for their start at zero."""
  return jax.tree.map(lambda average: common.corrected(average, weight), averages)


def _precondition(layer: str, leaves: common.Leaves, inverse: Inverse) -> common.Leaves:
  """The layer's leaves of ``A^(-1) W G^(-1)``."""
  matrix = multiply(inverse, _matrix(layer, leaves))
  kernel, *bias = _names(layer, leaves)
  rows = leaves[kernel].size // matrix.shape[-1]
  found = {kernel: matrix[:rows].reshape(leaves[kernel].shape)}
  for path in bias:
    found[path] = matrix[rows]
  return found
