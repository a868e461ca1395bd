"""What a user asks of a partition: estimators, limits, and overrides by path."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from mbf_optax._partition.bounds import FULL_BLOCK, within_bounds
from mbf_optax._partition.layer import EstimatorName, Layer
from mbf_optax._tree import checks

Dense = Literal["auto", "full", "shared", "two_sided", "low_rank"]
Override = tuple[str, Layer | str]
Axes = tuple[int, ...]
Shape = tuple[int, ...]

ESTIMATORS: tuple[Dense, ...] = get_args(Dense)
_NAMED: dict[str | None, EstimatorName] = {name: name for name in ESTIMATORS}
READINGS = (*ESTIMATORS, "conv", "dense", "rms")


def refusal_of_blocks(path: str) -> ValueError:
  """Of an override that gives blocks to complex numbers."""
  return ValueError(
    f"mbf_optax: an override gives blocks to {path!r}, which is complex; blocks"
    ' are of real numbers, so read it as "rms".'
  )


def refusal_of_kind(path: str, shape: tuple[int, ...], asked: str) -> ValueError:
  """Of an override for an array that lacks the axes of what it is read as."""
  return ValueError(
    f"mbf_optax: an override reads {path!r}, of shape {shape}, as {asked!r}, which"
    f" needs {'spatial, ' if asked == 'conv' else ''}input and output axes; read it as"
    ' "rms" or give a Layer.'
  )


class Rule(NamedTuple):
  """An override: a pattern searched for in paths, and what to read them as."""

  pattern: re.Pattern[str]
  layer: Layer | str

  @classmethod
  def parse(cls, pattern: str, layer: Layer | str) -> "Rule":
    if not isinstance(layer, Layer) and layer not in READINGS:
      raise ValueError(
        f"mbf_optax: the override {pattern!r} asks for {layer!r}; use a Layer or"
        f" one of {', '.join(map(repr, READINGS))}."
      )
    try:
      return cls(re.compile(pattern), layer)
    except re.error as error:
      raise ValueError(
        f"mbf_optax: the override {pattern!r} is no regular expression ({error}); use"
        " re.escape to match a path as it is written."
      ) from error


@dataclasses.dataclass(frozen=True)
class Choices:
  """The arguments of a partition, checked.

  Attributes:
    dense: estimator of dense layers.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block for which ``"auto"`` may keep a matrix per neuron.
    block_limit: largest number of inputs or outputs that one shared matrix spans.
    rules: what to read otherwise, first match first.
  """

  dense: Dense
  rank: int
  full_limit: int
  block_limit: int
  rules: tuple[Rule, ...]

  @classmethod
  def checked(
    cls,
    dense: Dense,
    rank: int,
    full_limit: int,
    block_limit: int,
    overrides: Sequence[Override],
  ) -> "Choices":
    """Raises a ``ValueError`` that names the argument for what cannot be used."""
    if not isinstance(dense, str):
      raise TypeError(
        f"mbf_optax: the partition got a {type(dense).__name__} for dense. Parameters"
        " go to what a preset returns: partition=flax_partition() for an optimizer,"
        " flax_partition()(params) for the readings."
      )
    if dense not in ESTIMATORS:
      raise ValueError(
        f"mbf_optax: the partition got dense={dense!r}; use one of"
        f" {', '.join(map(repr, ESTIMATORS))}."
      )
    limits = {"rank": rank, "full_limit": full_limit, "block_limit": block_limit}
    for name, value in limits.items():
      checks.count(f"the partition's {name}", value)
    if isinstance(overrides, str | dict):
      raise TypeError(
        f"mbf_optax: overrides is a {type(overrides).__name__}; give a list of pairs,"
        ' [("Dense_0/kernel", "rms")] say: the first that matches wins.'
      )
    for pair in overrides:
      if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
          f"mbf_optax: an override is {pair!r}; give pairs of a pattern and what to"
          ' read, ("Dense_0/kernel", "rms") say.'
        )
    rules = tuple(Rule.parse(*pair) for pair in overrides)
    return cls(dense, rank, full_limit, block_limit, rules)

  def asked(self, path: str, weight: str | None) -> Layer | str | None:
    """What the first override says; one of a weight does not reach its bias."""
    for pattern, layer in self.rules:
      of_weight = weight is not None and pattern.search(weight)
      if pattern.search(path) and not of_weight:
        return layer
    return None

  def check_matches(self, paths: Iterable[str]) -> None:
    """Raises a ``ValueError`` for an override that matches none of the paths."""
    paths = list(paths)
    for pattern, _ in self.rules:
      if paths and not any(pattern.search(path) for path in paths):
        raise ValueError(
          f"mbf_optax: the override {pattern.pattern!r} matches no leaf; the paths are"
          f" {', '.join(paths)}."
        )

  def neurons(self, axes: Axes, stack: Axes, shape: Shape, asked: str | None) -> Layer:
    """A dense layer: one block for every output, over all of its inputs.

    Args:
      axes: of the inputs.
      stack: axes that stack layers.
      shape: of the weight array.
      asked: what an override reads it as, if one does.
    """
    estimator = _NAMED.get(asked, self.dense)
    return self._bounded(Layer(axes, estimator, stack), shape)

  def convolution(
    self, spatial: Axes, channels: Axes, stack: Axes, shape: Shape, asked: str | None
  ) -> Layer:
    """A convolution: one block per kernel, unless the optimizer spans the channels.

    Args:
      spatial: axes of the offsets.
      channels: axes of the input channels.
      stack: axes that stack layers.
      shape: of the weight array.
      asked: what an override reads it as, if one does.
    """
    offsets = math.prod(shape[axis] for axis in spatial)
    of_kernels: EstimatorName = "full" if offsets <= FULL_BLOCK else "shared"
    is_open = asked is None and bool(channels)
    estimator = _NAMED.get(asked, "auto" if is_open else of_kernels)
    layer = Layer(spatial, estimator, stack, joins_bias=False)
    if estimator == "auto":  # bounded when it is known whether blocks span channels
      return self._asked(dataclasses.replace(layer, channel_axes=channels))
    if estimator == "two_sided":
      both = tuple(sorted(spatial + channels))
      layer = dataclasses.replace(layer, block_axes=both)
    return self._bounded(layer, shape)

  def _bounded(self, layer: Layer, shape: Shape) -> Layer:
    return within_bounds(self._asked(layer), shape)

  def _asked(self, layer: Layer) -> Layer:
    """The layer with the rank and the limits that were asked for."""
    return dataclasses.replace(
      layer,
      rank=self.rank,
      full_limit=self.full_limit,
      block_limit=self.block_limit,
    )
