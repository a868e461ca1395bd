"""What a layer's parameters become: mini-blocks and the estimator that keeps them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from mbf_optax import tree

Estimator = Literal["full", "shared", "low_rank", "rms", "inverse"]
ELEMENTWISE = ("rms", "inverse")


@dataclasses.dataclass(frozen=True)
class Layer:
  """How one weight array divides into mini-blocks (section 3 of the paper).

  A block vector runs over ``block_axes`` of the array, every combination of the
  other axes is one block: a convolution kernel ``(3, 3, in, out)`` has block axes
  ``(0, 1)``, a dense kernel ``(in, out)`` has ``(0,)``.

  Attributes:
    block_axes: the axes of the array that one block spans; negative ones count from
      the end. Empty for the element-by-element estimators.
    estimator: ``"full"`` keeps a matrix for every block, ``"shared"`` one matrix for
      all of the layer's blocks (the paper's spatial averaging), ``"low_rank"`` the
      last ``rank`` gradients, from which every block's exact inverse follows.
      ``"rms"`` is Adam's direction, element by element, and ``"inverse"`` the same
      without its square root.
    stack_axes: number of leading axes that stack independent layers (``nn.scan``,
      ``nn.vmap``): each index is treated as a layer of its own.
    joins_bias: whether the layer's bias, if it has one, is the last element of the
      block of its neuron.
    rank: number of gradients that ``"low_rank"`` keeps.

  Raises:
    ValueError: for an unknown estimator, a rank below 1, or block axes that do not go
      with the estimator.

  Examples:
    >>> import mbf_optax
    >>> per_kernel = mbf_optax.Layer(block_axes=(0, 1), joins_bias=False)
    >>> partition = mbf_optax.flax_partition(overrides=[("Conv_0", per_kernel)])
  """

  block_axes: tuple[int, ...] = ()
  estimator: Estimator = "full"
  stack_axes: int = 0
  joins_bias: bool = True
  rank: int = 16

  def __post_init__(self) -> None:
    if self.estimator not in get_args(Estimator):
      raise ValueError(
        f"mbf_optax.Layer: unknown estimator {self.estimator!r}; use one of"
        f" {', '.join(map(repr, get_args(Estimator)))}."
      )
    if self.rank < 1:
      raise ValueError(
        f"mbf_optax.Layer: rank is {self.rank}; a low-rank estimate needs at least 1."
      )
    if self.elementwise and self.block_axes:
      raise ValueError(
        f"mbf_optax.Layer: the estimator {self.estimator!r} reads element by element"
        f" and takes no block axes, got {self.block_axes}."
      )
    if not self.elementwise and not self.block_axes:
      raise ValueError(
        f"mbf_optax.Layer: the estimator {self.estimator!r} needs block_axes, the axes"
        " of the weight array that one mini-block spans."
      )

  @property
  def elementwise(self) -> bool:
    """Whether every element is a block of its own."""
    return self.estimator in ELEMENTWISE


class Reading(NamedTuple):
  """One layer of a parameter tree together with what it was read as.

  Attributes:
    path: path of the weight array, ``"/"``-joined; the layer's name.
    bias_path: path of the bias that is part of the blocks, or ``None``.
    shape: shape of the weight array.
    layer: the reading, with non-negative axes.
    bias_shape: shape of the bias that is part of the blocks.
  """

  path: str
  bias_path: str | None
  shape: tuple[int, ...]
  layer: Layer
  bias_shape: tuple[int, ...] = ()

  @property
  def batch_shape(self) -> tuple[int, ...]:
    """Sizes of the axes that count blocks, stacked axes first."""
    return tuple(
      size for axis, size in enumerate(self.shape) if axis not in self.layer.block_axes
    )

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stacked axes."""
    return self.shape[: self.layer.stack_axes]

  @property
  def block_size(self) -> int:
    """Length ``n`` of one block vector, its bias included."""
    size = math.prod(self.shape[axis] for axis in self.layer.block_axes)
    return size + (self.bias_path is not None)

  @property
  def blocks(self) -> int:
    """Number of mini-blocks."""
    return math.prod(self.batch_shape)

  @property
  def label(self) -> str:
    """The estimator, ``"+bias"`` with one in the blocks, ``"x2"`` for two stacked."""
    bias = "" if self.bias_path is None else "+bias"
    stacked = math.prod(self.stack_shape)
    return f"{self.layer.estimator}{bias}" + ("" if stacked == 1 else f" x{stacked}")

  @property
  def paths(self) -> tuple[str, ...]:
    """Paths of the parameters that belong to the layer."""
    return (self.path,) if self.bias_path is None else (self.path, self.bias_path)

  def describe(self) -> str:
    """One line: ``"Dense_0/kernel (784, 10): shared+bias, 10 blocks of 785"``."""
    plural = "" if self.blocks == 1 else "s"
    blocks = f"{self.blocks:,} block{plural} of {self.block_size}"
    return f"{self.path or '(the array)'} {self.shape}: {self.label}, {blocks}"


Partition = Callable[[Any], Sequence[Reading]]
"""From a parameter tree (arrays or shapes) to the readings of its layers."""


def read(
  path: str, shape: tuple[int, ...], layer: Layer, bias: tuple[str, Any] | None = None
) -> Reading:
  """A checked reading of the weight array at ``path``.

  Args:
    path: path of the weight array.
    shape: its shape.
    layer: how to read it; axes may be negative.
    bias: path and shape of the bias to join, ignored unless ``layer.joins_bias``.

  Returns:
    The reading with its axes made non-negative.

  Raises:
    ValueError: if the layer does not fit the shape; the message names the path.
  """
  ndim = len(shape)
  if any(not -ndim <= axis < ndim for axis in layer.block_axes):
    raise ValueError(
      f"mbf_optax: {path!r} has shape {shape}, and block axes {layer.block_axes} do not"
      f" fit it; use axes of {-ndim} to {ndim - 1}."
    )
  axes = tuple(sorted(axis % ndim for axis in layer.block_axes))
  if len(set(axes)) != len(axes) or not 0 <= layer.stack_axes <= min((*axes, ndim)):
    raise ValueError(
      f"mbf_optax: {path!r} has shape {shape}; block axes {layer.block_axes} must be"
      f" distinct and lie behind the {layer.stack_axes} stacked axes."
    )
  layer = dataclasses.replace(layer, block_axes=axes)
  if bias is None or not layer.joins_bias or layer.elementwise:
    return _with_blocks(Reading(path, None, shape, layer))
  reading = _with_blocks(Reading(path, bias[0], shape, layer, tuple(bias[1])))
  if not joins(reading.bias_shape, reading.batch_shape):
    raise ValueError(
      f"mbf_optax: {bias[0]!r} has shape {tuple(bias[1])} but the blocks of {path!r}"
      f" are counted by {reading.batch_shape}; correct block_axes, or read the bias"
      " apart with joins_bias=False."
    )
  return reading


def _with_blocks(reading: Reading) -> Reading:
  """The reading, unless it has no blocks or they have no elements."""
  if not reading.layer.elementwise and 0 in (reading.blocks, reading.block_size):
    raise ValueError(
      f"mbf_optax: {reading.path!r} has shape {reading.shape}, and no element lies in"
      f' blocks along its axes {reading.layer.block_axes}; read it as "rms".'
    )
  return reading


def joins(bias_shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> bool:
  """Whether a bias has one element a block; axes of size one do not matter."""
  return [n for n in bias_shape if n != 1] == [n for n in batch_shape if n != 1]


def check_cover(readings: Sequence[Reading], leaves: tree.Leaves) -> None:
  """Raises a ``ValueError`` unless every leaf belongs to exactly one reading."""
  seen: set[str] = set()
  for reading in readings:
    for path in reading.paths:
      if path not in leaves:
        raise ValueError(f"mbf_optax: the partition reads {path!r}, which is no leaf.")
      if path in seen:
        raise ValueError(f"mbf_optax: the partition reads {path!r} twice.")
      seen.add(path)
  for path in leaves:
    if path not in seen:
      raise ValueError(
        f"mbf_optax: the partition leaves {path!r} out; give it a reading"
        ' (an estimator "rms" treats it as Adam would).'
      )


def to_blocks(reading: Reading, leaves: tree.Leaves) -> jax.Array:
  """Block vectors ``(n, *batch)`` of a layer, in float32 or wider.

  Args:
    reading: the layer.
    leaves: arrays by path; the weight array and, if joined, its bias are taken.
  """
  array = as_float(leaves[reading.path])
  if reading.layer.elementwise:
    return array[None]
  axes = reading.layer.block_axes
  blocks = jnp.moveaxis(array, axes, range(len(axes)))
  size = math.prod(reading.shape[axis] for axis in axes)  # -1 fails without blocks
  blocks = blocks.reshape(size, *reading.batch_shape)
  if reading.bias_path is None:
    return blocks
  bias = as_float(leaves[reading.bias_path]).reshape(1, *reading.batch_shape)
  return jnp.concatenate([blocks, bias])


def from_blocks(reading: Reading, blocks: jax.Array) -> tree.Leaves:
  """Inverse of :func:`to_blocks`: arrays in the parameters' shapes, by path."""
  if reading.layer.elementwise:
    return {reading.path: blocks[0]}
  leaves = {}
  if reading.bias_path is not None:
    leaves[reading.bias_path] = blocks[-1].reshape(reading.bias_shape)
    blocks = blocks[:-1]
  axes = reading.layer.block_axes
  block_shape = tuple(reading.shape[axis] for axis in axes)
  array = blocks.reshape(*block_shape, *reading.batch_shape)
  leaves[reading.path] = jnp.moveaxis(array, range(len(axes)), axes)
  return leaves


def as_float(array: jax.Array) -> jax.Array:
  """``array`` in float32, or in its own dtype where that is wider."""
  return array.astype(wide_dtype(array.dtype))


def wide_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """float32 for narrower floating dtypes, ``dtype`` itself for all others."""
  return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
