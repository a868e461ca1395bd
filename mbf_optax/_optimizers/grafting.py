"""Grafting: one transformation's direction at another's length, layer by layer."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from mbf_optax._optimizers.faults import without_faults
from mbf_optax._optimizers.state import as_arrays
from mbf_optax._partition.blocks import from_blocks, to_blocks
from mbf_optax._partition.layer import Partition, Reading
from mbf_optax._partition.presets import flax_partition
from mbf_optax._tree import checks
from mbf_optax._tree.dtypes import as_float
from mbf_optax._tree.paths import Leaves, flatten, unflatten
from mbf_optax._tree.shapes import Array, Float

Lengths = Literal["layer", "block"]


class GraftState(NamedTuple):
  """State of :func:`graft`: the states of the two transformations."""

  direction: optax.OptState
  magnitude: optax.OptState


def graft(
  direction: optax.GradientTransformation,
  magnitude: optax.GradientTransformation,
  partition: Partition | None = None,
  lengths: Lengths = "layer",
) -> optax.GradientTransformationExtraArgs:
  r"""Takes every layer's direction from one transformation, its length from another.

  Both run on the same gradients. With :math:`d` and :math:`a` their updates of a layer,
  a kernel together with the bias that is part of its blocks, the layer's update is

  .. math:: d \, \lVert a \rVert / \lVert d \rVert

  and zero where :math:`d` is. Parameters that the partition reads element by element
  take :math:`a` itself. Stacked layers are scaled one by one.

  Args:
    direction: transformation that gives the direction, for example
      :func:`scale_by_mbf`.
    magnitude: transformation that gives the length, for example
      ``optax.scale_by_adam()``. Neither may flip the gradient's sign, which the
      learning rate does.
    partition: reads the parameters as layers; ``None`` is :func:`flax_partition`.
    lengths: whether a ``"layer"`` is scaled as a whole, or every mini-``"block"``.

  Returns:
    The transformation; extra arguments reach both parts. Both parts, their states and
    the norms are float32 or wider; updates come in the gradients' dtype. The magnitude
    sees zeros in place of elements that are not finite, or too large to be squared and
    added up.

  Examples:
    >>> import jax.numpy as jnp, optax, mbf_optax
    >>> tx = mbf_optax.graft(optax.identity(), optax.scale(0.1))
    >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> print(updates["Dense_0"]["kernel"])
    [[0.1 0.1]
     [0.1 0.1]]

  References:
    Agarwal, Anil, Hazan, Koren and Zhang, `Disentangling Adaptive Gradient Methods from
    Learning Rates <https://arxiv.org/abs/2002.11803>`_, 2020.
  """
  partition = checks.partition(flax_partition() if partition is None else partition)
  checks.choice("lengths", lengths, get_args(Lengths))
  direction = optax.with_extra_args_support(direction)
  magnitude = optax.with_extra_args_support(magnitude)

  def init(params: optax.Params) -> GraftState:
    wide = _wide(as_arrays(params))
    return GraftState(direction.init(wide), magnitude.init(wide))

  def update(
    updates: optax.Updates,
    state: GraftState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, GraftState]:
    updates = as_arrays(updates)
    wide = _wide(updates)
    along, direction_state = direction.update(
      wide, state.direction, params, **extra_args
    )
    sized, magnitude_state = magnitude.update(
      without_faults(wide), state.magnitude, params, **extra_args
    )
    along_leaves, leaves = flatten(along), flatten(sized)
    for reading in partition(updates):
      if not reading.layer.elementwise:
        leaves |= _resized(reading, along_leaves, leaves, lengths)
    grafted = unflatten(updates, leaves)
    grafted = jax.tree.map(lambda d, g: d.astype(g.dtype), grafted, updates)
    return grafted, GraftState(direction_state, magnitude_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _wide(updates: optax.Updates) -> optax.Updates:
  """In float32 or wider.

  float16 over- and underflows here, and averages in bfloat16 stop changing.
  """
  return jax.tree.map(as_float, updates)


def _resized(
  reading: Reading, along: Leaves, sized: Leaves, lengths: Lengths
) -> Leaves:
  """The layer's part of ``along``, rescaled to the norms of ``sized``."""
  d, a = to_blocks(reading, along), to_blocks(reading, sized)
  stacked = len(reading.stack_shape)
  axes = (0,) if lengths == "block" else (0, *range(1 + stacked, d.ndim))
  own, wanted = _norms(d, axes), _norms(a, axes)
  return from_blocks(reading, d / jnp.where(own > 0, own, 1) * wanted)


def _norms(v: Float[Array, "n *batch"], axes: tuple[int, ...]) -> Float[Array, "..."]:
  """Euclidean norms over ``axes``, which stay with size one; never over- or underflow.

  Any transformation may be grafted, and elements are squared in units of the largest.
  """
  largest = jnp.max(jnp.abs(v), axes, keepdims=True)
  unit = jnp.where(largest > 0, largest, 1)
  squares = jnp.sum(jnp.square(v / unit), axes, keepdims=True)
  # A root's derivative at zero is infinite.
  return largest * jnp.sqrt(jnp.where(largest > 0, squares, 1))
