"""Reading a parameter tree: which leaves form a layer, and with which estimator."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import optax

from mbf_optax._partition.by_shape import says_elementwise
from mbf_optax._partition.conventions import PATCH, Convention, Geometry, Kind
from mbf_optax._partition.layer import (
  ELEMENTWISE,
  Bias,
  Layer,
  Reading,
  Why,
  bias_order,
  read,
)
from mbf_optax._partition.overrides import (
  Choices,
  refusal_of_blocks,
  refusal_of_kind,
)
from mbf_optax._partition.parameters import Parameters
from mbf_optax._tree import paths
from mbf_optax._tree.dtypes import is_complex

_KINDS: dict[str | None, Kind] = {"conv": "conv", "dense": "dense"}
_RMS = Layer(estimator="rms")
_KEPT = 16  # trees whose readings a partition remembers


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
    choices: the arguments of the partition, overrides among them.
  """

  conventions: tuple[Convention, ...]
  choices: Choices
  _seen: dict[Any, tuple[Reading, ...]] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    leaves = paths.flatten(params)
    masked = bool(self.choices.rules) and _has_masked(params)
    arrays = ((path, tuple(a.shape), str(a.dtype)) for path, a in leaves.items())
    key = masked, *arrays
    readings = self._seen.get(key)
    if readings is None:
      if not masked:
        self.choices.check_matches(leaves)
      readings = self._read(Parameters(leaves, self._is_named))
      for oldest in list(self._seen)[: 1 - _KEPT]:
        self._seen.pop(oldest, None)
      self._seen[key] = readings
    return readings

  def _read(self, params: Parameters) -> tuple[Reading, ...]:
    found: dict[str, _Found] = {}
    readings = {}
    for path in params.leaves:
      layer, bias, why = self._find(path, params, found)
      reading = read(path, params.shape(path), layer, bias)
      readings[path] = reading._replace(why=why)
    joined = {reading.bias_path for reading in readings.values()}
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _is_named(self, path: str, params: Parameters) -> bool:
    """Whether a convention of names knows the leaf; the last goes by shapes."""
    return any(
      c.reads(path, params) or c.weight_of(path, params) is not None
      for c in self.conventions[:-1]
    )

  def _find(self, path: str, params: Parameters, found: dict[str, _Found]) -> _Found:
    """How to read the leaf at ``path``; kept, as biases ask for their weights."""
    if path not in found:
      weight_path = self._weight_of(path, params)
      asked = self.choices.asked(path, weight_path)
      if isinstance(asked, Layer):
        found[path] = self._explicit(path, params, asked)
      elif asked is None and weight_path is not None:
        weight = self._find(weight_path, params, found)
        found[path] = _Found(_bias_layer(weight, params[path]))
      else:
        found[path] = self._by_convention(path, params, asked)
    return found[path]

  def _by_convention(self, path: str, params: Parameters, asked: str | None) -> _Found:
    convention = self._convention_of(path, params)
    why: Why = "recognised" if asked is None else "asked"
    if asked in ELEMENTWISE or (asked is None and convention.excludes(path, params)):
      return _Found(_RMS, why=why)
    if asked is None and not convention.reads(path, params):
      known = params[path].ndim < 2 or says_elementwise(path)
      why = "recognised" if known or is_complex(params[path]) else "unknown"
      return _Found(_RMS, why=why)
    return self._weight_layer(path, params, asked, convention)

  def _weight_of(self, path: str, params: Parameters) -> str | None:
    """The weight whose bias the leaf at ``path`` is."""
    found = (c.weight_of(path, params) for c in self.conventions)
    return next((weight for weight in found if weight is not None), None)

  def _convention_of(self, path: str, params: Parameters) -> Convention:
    """The first that knows the weight at ``path``, or the last."""
    found = (c for c in self.conventions if c.reads(path, params))
    return next(found, self.conventions[-1])

  def _explicit(self, path: str, params: Parameters, layer: Layer) -> _Found:
    """An override's own layer."""
    if is_complex(params[path]) and not layer.elementwise:
      raise refusal_of_blocks(path)
    bias_path = self._free_bias(path, params, self._convention_of(path, params))
    bias = None if bias_path is None else Bias(bias_path, params.shape(bias_path))
    return _Found(layer, bias, "asked")

  def _weight_layer(
    self, path: str, params: Parameters, asked: str | None, convention: Convention
  ) -> _Found:
    leaf, kind = params[path], _KINDS.get(asked)
    if is_complex(leaf) or leaf.size == 0:
      return _Found(_RMS)
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
    stack, offsets = geometry.stack_axes, math.prod(shape[a] for a in geometry.spatial)
    if asked == "conv" or 1 < offsets < PATCH:
      return self.choices.convolution(
        geometry.spatial, geometry.inputs, stack, shape, asked
      )
    axes = tuple(sorted(geometry.spatial + geometry.inputs))
    return self.choices.neurons(axes, stack, shape, asked)

  def _without_blocks(self, path: str, leaf: Any, asked: str | None) -> Layer:
    if asked is not None and asked in _KINDS:
      raise refusal_of_kind(path, tuple(leaf.shape), asked)
    return _RMS

  def _free_bias(
    self, path: str, params: Parameters, convention: Convention
  ) -> str | None:
    """The bias that may join the blocks: real, and with no override of its own."""
    bias_path = convention.bias_of(path, params)
    if bias_path is None or is_complex(params[bias_path]):
      return None
    return bias_path if self.choices.asked(bias_path, path) is None else None


def _bias_layer(weight: _Found, leaf: Any) -> Layer:
  """Of a bias beside a weight; without effect where the weight's blocks hold it."""
  layer, bias, _ = weight
  if layer.elementwise or is_complex(leaf):
    return _RMS
  axes = range(leaf.ndim) if bias is None or bias.axes is None else bias.axes
  if len(axes) > leaf.ndim:
    axes = ()  # it lacks what the weight stacks
  stack = [at for at, axis in enumerate(axes) if axis in layer.stack_axes]
  return Layer(estimator="inverse", stack_axes=tuple(stack))


def _has_masked(params: Any) -> bool:
  """Whether ``optax.masked`` or ``optax.partition`` hide some of the tree."""
  nodes = jax.tree.leaves(params, is_leaf=_is_masked)
  return any(map(_is_masked, nodes))


def _is_masked(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)
