"""Reading a parameter tree: which leaves form a layer, and with which estimator."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbf_optax._partition.bounds import FULL_BLOCK, within_bounds
from mbf_optax._partition.by_shape import says_elementwise
from mbf_optax._partition.conventions import PATCH, Convention, Geometry, Kind
from mbf_optax._partition.layer import (
  Bias,
  Estimator,
  Layer,
  Reading,
  Why,
  bias_order,
  read,
)
from mbf_optax._partition.parameters import Parameters
from mbf_optax._tree import paths

Dense = Literal["auto", "full", "shared", "two_sided", "low_rank"]
Override = tuple[str, Layer | str]

_ESTIMATORS: dict[str | None, Estimator] = {
  "auto": "auto",
  "full": "full",
  "shared": "shared",
  "two_sided": "two_sided",
  "low_rank": "low_rank",
}
_KINDS: dict[str | None, Kind] = {"conv": "conv", "dense": "dense"}
_KEPT = 16  # trees whose readings a partition remembers


class _Override(NamedTuple):
  pattern: re.Pattern[str]
  layer: Layer | str

  @classmethod
  def parse(cls, pair: Override) -> "_Override":
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
      raise ValueError(
        f"mbf_optax: an override is {pair!r}; give pairs of a pattern and what to read,"
        ' ("Dense_0/kernel", "rms") say.'
      )
    pattern, layer = pair
    known = (*_ESTIMATORS, *_KINDS, "rms")
    if not isinstance(layer, Layer) and layer not in known:
      raise ValueError(
        f"mbf_optax: the override {pattern!r} asks for {layer!r}; use a Layer or"
        f" one of {', '.join(map(repr, known))}."
      )
    try:
      return cls(re.compile(pattern), layer)
    except re.error as error:
      raise ValueError(
        f"mbf_optax: the override {pattern!r} is no regular expression ({error}); use"
        " re.escape to match a path as it is written."
      ) from error


class _Found(NamedTuple):
  """How to read a leaf.

  Attributes:
    layer: the reading.
    bias: the bias beside it, if it is a weight.
    why: who says so.
  """

  layer: Layer
  bias: Bias | None = None
  why: Why = "recognised"


@dataclasses.dataclass(frozen=True)
class NamedPartition:
  """Reads layers by names, shapes or types, as conventions know them.

  Attributes:
    conventions: where weights and biases are and what their axes are; the first that
      knows a leaf reads it, and the last what overrides name.
    dense: estimator of dense layers; ``"auto"`` leaves it to the optimizer.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block for which ``"auto"`` may keep a matrix per neuron.
    block_limit: largest number of inputs or outputs that one shared matrix spans.
    overrides: what to read otherwise, first match first.
  """

  conventions: tuple[Convention, ...]
  dense: Dense
  rank: int
  full_limit: int
  block_limit: int
  overrides: tuple[_Override, ...]
  _seen: dict[Any, tuple[Reading, ...]] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  @classmethod
  def checked(
    cls,
    conventions: tuple[Convention, ...],
    dense: Dense,
    rank: int,
    full_limit: int,
    block_limit: int,
    overrides: Sequence[Override],
  ) -> "NamedPartition":
    """A partition of checked arguments; see :func:`mbf_optax.flax_partition`."""
    if not isinstance(dense, str):
      raise TypeError(
        f"mbf_optax: the partition got a {type(dense).__name__} for dense. Parameters go"
        " to what a preset returns: partition=flax_partition() for an optimizer,"
        " flax_partition()(params) for the readings."
      )
    if dense not in _ESTIMATORS:
      raise ValueError(
        f"mbf_optax: the partition got dense={dense!r}; use one of"
        f" {', '.join(map(repr, _ESTIMATORS))}."
      )
    limits = {"rank": rank, "full_limit": full_limit, "block_limit": block_limit}
    for name, value in limits.items():
      if value < 1:
        raise ValueError(
          f"mbf_optax: the partition's {name} is {value}; it must be at least 1."
        )
    if not isinstance(overrides, Sequence) or isinstance(overrides, str):
      raise TypeError(
        f"mbf_optax: overrides is a {type(overrides).__name__}; give a list of pairs,"
        ' [("Dense_0/kernel", "rms")] say: the first that matches wins.'
      )
    parsed = tuple(map(_Override.parse, overrides))
    return cls(conventions, dense, rank, full_limit, block_limit, parsed)

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    leaves = paths.flatten(params)
    key = tuple((path, tuple(a.shape), str(a.dtype)) for path, a in leaves.items())
    if key not in self._seen:
      if not _has_masked(params):
        self._check_overrides(leaves)
      readings = self._read(Parameters(leaves, self._is_named))
      while len(self._seen) >= _KEPT:
        self._seen.pop(next(iter(self._seen)), None)
      self._seen[key] = readings
    return self._seen[key]

  def _read(self, params: Parameters) -> tuple[Reading, ...]:
    readings, joined = {}, set()
    for path in params.leaves:
      layer, bias, why = self._find(path, params)
      reading = read(path, params.shape(path), layer, bias)
      readings[path] = reading._replace(why=why)
      joined.add(reading.bias_path)
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _is_named(self, path: str, params: Parameters) -> bool:
    """Whether a convention of names knows the leaf; the last goes by shapes."""
    return any(
      c.reads(path, params) or c.weight_of(path, params) is not None
      for c in self.conventions[:-1]
    )

  def _check_overrides(self, leaves: paths.Leaves) -> None:
    for pattern, _ in self.overrides:
      if leaves and not any(pattern.search(path) for path in leaves):
        raise ValueError(
          f"mbf_optax: the override {pattern.pattern!r} matches no leaf; the paths are"
          f" {', '.join(leaves)}."
        )

  def _find(self, path: str, params: Parameters) -> _Found:
    """How to read the leaf at ``path``."""
    weight_path = self._weight_of(path, params)
    asked = self._asked(path, weight_path)
    if isinstance(asked, Layer):
      return self._explicit(path, params, asked)
    if asked is None and weight_path is not None:
      return _Found(self._bias_layer(weight_path, path, params))
    convention = self._convention_of(path, params)
    if asked == "rms" or (asked is None and convention.excludes(path, params)):
      why: Why = "recognised" if asked is None else "asked"
      return _Found(Layer(estimator="rms"), why=why)
    if asked is None and not convention.reads(path, params):
      known = params[path].ndim < 2 or says_elementwise(path)
      why = "recognised" if known or _is_complex(params[path]) else "unknown"
      return _Found(Layer(estimator="rms"), why=why)
    return self._weight_layer(path, params, asked, convention)

  def _weight_of(self, path: str, params: Parameters) -> str | None:
    """The weight whose bias the leaf at ``path`` is."""
    found = (c.weight_of(path, params) for c in self.conventions)
    return next((weight for weight in found if weight is not None), None)

  def _convention_of(self, path: str, params: Parameters) -> Convention:
    """The first that knows the weight at ``path``, or the last."""
    found = (c for c in self.conventions if c.reads(path, params))
    return next(found, self.conventions[-1])

  def _asked(self, path: str, weight_path: str | None) -> Layer | str | None:
    """What the first override says; one of the weight does not reach its bias."""
    for pattern, layer in self.overrides:
      of_weight = weight_path is not None and pattern.search(weight_path)
      if pattern.search(path) and not of_weight:
        return layer
    return None

  def _explicit(self, path: str, params: Parameters, layer: Layer) -> _Found:
    """An override's own layer."""
    if _is_complex(params[path]) and not layer.elementwise:
      raise ValueError(
        f"mbf_optax: an override gives blocks to {path!r}, which is complex; blocks"
        ' are of real numbers, so read it as "rms".'
      )
    bias_path = self._free_bias(path, params, self._convention_of(path, params))
    bias = None if bias_path is None else Bias(bias_path, params.shape(bias_path))
    return _Found(layer, bias, "asked")

  def _bias_layer(self, weight_path: str, path: str, params: Parameters) -> Layer:
    """Of a bias beside a weight; without effect where the weight's blocks hold it."""
    weight, bias, _ = self._find(weight_path, params)
    if weight.elementwise or _is_complex(params[path]):
      return Layer(estimator="rms")
    ndim = params[path].ndim
    axes = range(ndim) if bias is None or bias.axes is None else bias.axes[:ndim]
    stack = [at for at, axis in enumerate(axes) if axis in weight.stack_axes]
    return Layer(estimator="inverse", stack_axes=tuple(stack))

  def _weight_layer(
    self, path: str, params: Parameters, asked: str | None, convention: Convention
  ) -> _Found:
    leaf, kind = params[path], _KINDS.get(asked)
    if _is_complex(leaf) or leaf.size == 0:
      return _Found(Layer(estimator="rms"))
    geometry = Geometry((), (), (), ())
    if leaf.ndim >= 2:
      geometry = convention.geometry(path, params, kind)
    if not (geometry.spatial if asked == "conv" else geometry.inputs):
      return _Found(self._without_blocks(path, leaf, asked))
    layer = self._layer(geometry, params.shape(path), asked)
    why: Why = "recognised" if asked is None else "asked"
    bias_path = self._free_bias(path, params, convention)
    if bias_path is None:
      return _Found(dataclasses.replace(layer, joins_bias=False), None, why)
    bias = Bias(bias_path, params.shape(bias_path), geometry.bias_axes)
    if layer.joins_bias:
      alone = Reading(path, None, params.shape(path), layer)
      joins = bias_order(alone, bias) is not None
      layer = layer if joins else dataclasses.replace(layer, joins_bias=False)
    return _Found(layer, bias, why)

  def _layer(
    self, geometry: Geometry, shape: tuple[int, ...], asked: str | None
  ) -> Layer:
    """One block per kernel of a convolution, or per neuron, over inputs and offsets."""
    offsets = math.prod(shape[axis] for axis in geometry.spatial)
    is_conv = asked == "conv" or 1 < offsets < PATCH
    axes = tuple(sorted(geometry.spatial + (() if is_conv else geometry.inputs)))
    default = _ESTIMATORS[self.dense]
    if is_conv:
      default = "full" if offsets <= FULL_BLOCK else "shared"
    layer = Layer(
      block_axes=axes,
      estimator=_ESTIMATORS.get(asked, default),
      stack_axes=geometry.stack_axes,
      joins_bias=not is_conv,
      rank=self.rank,
      full_limit=self.full_limit,
      block_limit=self.block_limit,
    )
    if self.block_limit > Layer.block_limit:
      return layer  # wider matrices than by default are asked for
    return within_bounds(layer, shape)

  def _without_blocks(self, path: str, leaf: Any, asked: str | None) -> Layer:
    if asked in _KINDS:
      raise ValueError(
        f"mbf_optax: an override reads {path!r}, of shape {tuple(leaf.shape)}, as"
        f" {asked!r}, which needs {'spatial, ' if asked == 'conv' else ''}input and"
        ' output axes; read it as "rms" or give a Layer.'
      )
    return Layer(estimator="rms")

  def _free_bias(
    self, path: str, params: Parameters, convention: Convention
  ) -> str | None:
    """The bias that may join the blocks: real, and with no override of its own."""
    bias_path = convention.bias_of(path, params)
    if bias_path is None or _is_complex(params[bias_path]):
      return None
    return bias_path if self._asked(bias_path, path) is None else None


def _is_complex(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def _has_masked(params: Any) -> bool:
  """Whether ``optax.masked`` or ``optax.partition`` hide some of the tree."""
  nodes = jax.tree.leaves(params, is_leaf=_is_masked)
  return any(map(_is_masked, nodes))


def _is_masked(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)
