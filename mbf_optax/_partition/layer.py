"""What a layer's parameters become: mini-blocks and the estimator that keeps them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mbf_optax._tree import checks
from mbf_optax._tree.paths import Leaves

EstimatorName = Literal[
  "auto", "full", "shared", "two_sided", "low_rank", "rms", "inverse"
]
_ESTIMATORS = get_args(EstimatorName)
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
      all of the layer's blocks (the paper's spatial averaging), ``"two_sided"`` also
      one of the layer's outputs (for :func:`mbf_adam`), ``"low_rank"`` the last
      ``rank`` gradients, from which every block's exact inverse follows (for
      :func:`mbf`). ``"rms"`` is Adam's direction, element by element, and ``"inverse"``
      the same without its square root. ``"auto"`` leaves the choice to the optimizer:
      :func:`mbf` keeps a matrix for every block of up to ``full_limit`` elements (36 in
      a convolution) and shares one otherwise. :func:`mbf_adam` takes two sides, except
      for layers of fewer than five outputs or of more than 32 inputs for each: those
      have Adam's update, and convolutions the blocks and estimators of :func:`mbf`.
    stack_axes: the axes that stack independent layers (``nn.scan``, ``nn.vmap``,
      experts): each index is a layer of its own. Negative ones count from the end.
    joins_bias: whether the layer's bias, if it has one, is the last element of the
      block of its neuron.
    rank: number of gradients that ``"low_rank"`` keeps.
    full_limit: largest block for which ``"auto"`` may keep a matrix for every block;
      36 with channel axes.
    block_limit: largest number of inputs (or outputs) that one matrix of ``"shared"``
      and ``"two_sided"`` spans, beside a bias; wider layers are cut into equal parts
      with a matrix each. Under ``"auto"`` :func:`mbf_adam` cuts at 128 at the latest,
      and a limit of up to 1024 is lowered where matrices would hold more than 40 floats
      a parameter.
    channel_axes: the axes of a convolution's input channels, under ``"auto"``. They
      count blocks, one for each kernel; where an optimizer takes two sides, a block
      spans them too and is all that feeds one output channel. Negative ones count from
      the end.

  Raises:
    ValueError: for an unknown estimator, a rank or a limit below 1, or block axes that
      do not go with the estimator.

  Examples:
    >>> import mbf_optax
    >>> per_kernel = mbf_optax.Layer(block_axes=(0, 1), joins_bias=False)
    >>> partition = mbf_optax.flax_partition(overrides=[("Conv_0", per_kernel)])
  """

  block_axes: tuple[int, ...] = ()
  estimator: EstimatorName = "full"
  stack_axes: tuple[int, ...] = ()
  joins_bias: bool = True
  rank: int = 16
  full_limit: int = 32
  block_limit: int = 1024
  channel_axes: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    if self.estimator not in _ESTIMATORS:
      raise ValueError(
        f"mbf_optax.Layer: unknown estimator {self.estimator!r}; use one of"
        f" {', '.join(map(repr, _ESTIMATORS))}."
      )
    for name in ("block_axes", "stack_axes", "channel_axes"):
      if isinstance(getattr(self, name), int):
        raise ValueError(
          f"mbf_optax.Layer: {name} is {getattr(self, name)}; give a tuple of axes,"
          f" ({getattr(self, name)},) say."
        )
      axes = tuple(getattr(self, name))
      if not all(isinstance(axis, int | np.integer) for axis in axes):
        raise ValueError(
          f"mbf_optax.Layer: {name} is {axes}; axes are whole numbers, (0,) say."
        )
      object.__setattr__(self, name, axes)
    for name in ("rank", "full_limit", "block_limit"):
      checks.count(f"Layer's {name}", getattr(self, name))
    if self.elementwise and self.block_axes:
      raise ValueError(
        f"mbf_optax.Layer: the estimator {self.estimator!r} reads element by element"
        f" and takes no block axes, got {self.block_axes}; leave them out, or take"
        ' another estimator such as "full".'
      )
    if self.channel_axes and self.joins_bias:
      raise ValueError(
        f"mbf_optax.Layer: with channel axes {self.channel_axes} a block may be one"
        " kernel, and no bias belongs to one; give joins_bias=False."
      )
    if self.channel_axes and not self.is_open:
      raise ValueError(
        f"mbf_optax.Layer: channel axes {self.channel_axes} are for the estimator"
        f' "auto", which may add them to the blocks, and it is {self.estimator!r};'
        " leave them out, or put them among the block_axes."
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

  @property
  def is_open(self) -> bool:
    """Whether the estimator is left to the optimizer."""
    return self.estimator == "auto"


Why = Literal["asked", "recognised", "unknown"]


class Reading(NamedTuple):
  """One layer of a parameter tree together with what it was read as.

  Attributes:
    path: path of the weight array, ``"/"``-joined; the layer's name.
    bias_path: path of the bias that is part of the blocks, or ``None``.
    shape: shape of the weight array.
    layer: the reading, with non-negative axes.
    bias_shape: shape of the bias that is part of the blocks.
    bias_axes: the axes of the weight array that count blocks, in the order in which the
      bias has them (axes of size one aside).
    why: ``"asked"`` for what a user says, ``"recognised"`` for what a partition knows
      (norms and embeddings too), ``"unknown"`` for an array that is read element by
      element because nothing is known of it.
  """

  path: str
  bias_path: str | None
  shape: tuple[int, ...]
  layer: Layer
  bias_shape: tuple[int, ...] = ()
  bias_axes: tuple[int, ...] = ()
  why: Why = "asked"

  @property
  def counted_axes(self) -> tuple[int, ...]:
    """Axes that count the blocks of one layer: neither stacked nor in the blocks."""
    taken = self.layer.block_axes + self.layer.stack_axes
    return tuple(axis for axis in range(len(self.shape)) if axis not in taken)

  @property
  def batch_axes(self) -> tuple[int, ...]:
    """Axes that count blocks, stacked axes first."""
    return self.layer.stack_axes + self.counted_axes

  @property
  def batch_shape(self) -> tuple[int, ...]:
    """Sizes of the axes that count blocks, stacked axes first."""
    return tuple(self.shape[axis] for axis in self.batch_axes)

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stacked axes."""
    return tuple(self.shape[axis] for axis in self.layer.stack_axes)

  @property
  def blocks_per_layer(self) -> int:
    """Number of mini-blocks of one layer of the stack."""
    return math.prod(self.shape[axis] for axis in self.counted_axes)

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
  def elements(self) -> int:
    """Number of the layer's parameters, its bias included."""
    return math.prod(self.shape) + math.prod(self.bias_shape) * bool(self.bias_path)

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


class Bias(NamedTuple):
  """A bias that may join the blocks of a weight array.

  Attributes:
    path: its path.
    shape: its shape.
    axes: the axes of the weight array that its axes correspond to, or ``None`` to find
      an order that fits: that of the weight array, or stacked axes first or last.
  """

  path: str
  shape: tuple[int, ...]
  axes: tuple[int, ...] | None = None


def read(
  path: str, shape: tuple[int, ...], layer: Layer, bias: Bias | None = None
) -> Reading:
  """A checked reading of the weight array at ``path``.

  Args:
    path: path of the weight array.
    shape: its shape.
    layer: how to read it; axes may be negative.
    bias: the bias to join, ignored unless ``layer.joins_bias``.

  Returns:
    The reading with its axes made non-negative.

  Raises:
    ValueError: if the layer does not fit the shape; the message names the path.
  """
  layer = _with_axes_of(path, shape, layer)
  if bias is None or not layer.joins_bias or layer.elementwise:
    return _with_blocks(Reading(path, None, shape, layer))
  reading = _with_blocks(Reading(path, bias.path, shape, layer, tuple(bias.shape)))
  order = bias_order(reading, bias)
  if order is None:
    raise ValueError(
      f"mbf_optax: {bias.path!r} has shape {tuple(bias.shape)} but the blocks of"
      f" {path!r} are counted by {reading.batch_shape}; correct block_axes, or read the"
      " bias apart with joins_bias=False."
    )
  return reading._replace(bias_axes=order)


def _with_axes_of(path: str, shape: tuple[int, ...], layer: Layer) -> Layer:
  """The layer with sorted non-negative axes, checked to be distinct axes of a shape."""
  ndim = len(shape)
  named = {
    "block": layer.block_axes,
    "stacked": layer.stack_axes,
    "channel": layer.channel_axes,
  }
  for name, given in named.items():
    if any(not -ndim <= axis < ndim for axis in given):
      raise ValueError(
        f"mbf_optax: {path!r} has shape {shape}, and {name} axes {given} do not fit it;"
        f" use axes of {-ndim} to {ndim - 1}."
      )
  axes = [tuple(sorted(axis % ndim for axis in given)) for given in named.values()]
  if len({*sum(axes, ())}) != len(sum(axes, ())):
    said = ", ".join(f"{name} axes {given}" for name, given in named.items() if given)
    raise ValueError(
      f"mbf_optax: {path!r} has shape {shape}; {said} must all be distinct; an axis"
      " that stacks layers or counts channels is not within their blocks."
    )
  block, stack, channels = axes
  return dataclasses.replace(
    layer, block_axes=block, stack_axes=stack, channel_axes=channels
  )


def _with_blocks(reading: Reading) -> Reading:
  """The reading, unless it has no blocks or they have no elements."""
  if not reading.layer.elementwise and 0 in (reading.blocks, reading.block_size):
    raise ValueError(
      f"mbf_optax: {reading.path!r} has shape {reading.shape}, and no element lies in"
      f' blocks along its axes {reading.layer.block_axes}; read it as "rms".'
    )
  return reading


def bias_order(reading: Reading, bias: Bias) -> tuple[int, ...] | None:
  """The axes of the weight array in the bias's order, ``None`` if it does not fit."""
  stack, counted = reading.layer.stack_axes, reading.counted_axes
  orders = [tuple(sorted(stack + counted)), stack + counted, counted + stack]
  if bias.axes is not None:
    orders = [bias.axes]
  wanted = [size for size in bias.shape if size != 1]
  for order in orders:
    sizes = [reading.shape[axis] for axis in order]
    if sorted(order) == sorted(stack + counted) and wanted == [
      size for size in sizes if size != 1
    ]:
      return order
  return None


def check_cover(readings: Sequence[Reading], leaves: Leaves) -> None:
  """Raises a ``ValueError`` unless every leaf belongs to exactly one reading."""
  seen: set[str] = set()
  for reading in readings:
    for path in reading.paths:
      if path not in leaves:
        raise ValueError(
          f"mbf_optax: the partition reads {path!r}, which is no leaf; it has to read"
          " the leaves of the tree that it is given."
        )
      if path in seen:
        raise ValueError(
          f"mbf_optax: the partition reads {path!r} twice; a leaf has one reading, and"
          " a bias that joins its weight's has none of its own."
        )
      seen.add(path)
  for path in leaves:
    if path not in seen:
      raise ValueError(
        f"mbf_optax: the partition leaves {path!r} out; give it a reading"
        ' (an estimator "rms" treats it as Adam would).'
      )
