"""Reading a parameter tree: which leaves form a layer, and with which estimator."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mbf_optax._partition.bounds import FULL_BLOCK, within_bounds
from mbf_optax._partition.conventions import (
  Convention,
  Geometry,
  bias_beside,
  weight_beside,
)
from mbf_optax._partition.layer import (
  Bias,
  Estimator,
  Layer,
  Reading,
  bias_order,
  read,
)
from mbf_optax._partition.overrides import Choices, Dense, Override, Rule
from mbf_optax._partition.parameters import Parameters, name_of
from mbf_optax._tree import paths as tree

_ESTIMATORS: dict[str | None, Estimator] = {
  "auto": "auto",
  "full": "full",
  "shared": "shared",
  "two_sided": "two_sided",
  "low_rank": "low_rank",
}
# No convolution has as many offsets; a kernel that does, a patch embedding of 14 x 14
# say, is moved by its own width and so a dense layer over whole patches.
_PATCH = 196
_KEPT = 16  # trees whose readings a partition remembers


@dataclasses.dataclass(frozen=True)
class NamedPartition:
  """Reads layers by the names and shapes of a library's convention.

  Attributes:
    convention: names of weights and biases, and their axes.
    dense: estimator of dense layers; ``"auto"`` leaves it to the optimizer.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block for which ``"auto"`` may keep a matrix per neuron.
    block_limit: largest number of inputs or outputs that one shared matrix spans.
    overrides: what to read otherwise, first match first.
  """

  convention: Convention
  dense: Dense
  rank: int
  full_limit: int
  block_limit: int
  overrides: tuple[Rule, ...]
  _seen: dict[Any, tuple[Reading, ...]] = dataclasses.field(
    default_factory=collections.OrderedDict, init=False, repr=False, compare=False
  )

  @classmethod
  def checked(
    cls,
    convention: Convention,
    dense: Dense,
    rank: int,
    full_limit: int,
    block_limit: int,
    overrides: Sequence[Override],
  ) -> "NamedPartition":
    """A partition of checked arguments; see :func:`mbf_optax.flax_partition`."""
    asked = Choices.checked(dense, rank, full_limit, block_limit, overrides)
    return cls(convention, dense, rank, full_limit, block_limit, asked.rules)

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    leaves = tree.flatten(params)
    key = tuple((path, tuple(a.shape), str(a.dtype)) for path, a in leaves.items())
    if key not in self._seen:
      readings = self._read(Parameters(leaves))
      while len(self._seen) >= _KEPT:
        self._seen.pop(next(iter(self._seen)), None)
      self._seen[key] = readings
    return self._seen[key]

  def _read(self, params: Parameters) -> tuple[Reading, ...]:
    self._check_overrides(params.leaves)
    readings, joined = {}, set()
    for path in params.leaves:
      layer, bias = self._layer(path, params)
      readings[path] = read(path, params.shape(path), layer, bias)
      joined.add(readings[path].bias_path)
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _check_overrides(self, leaves: tree.Leaves) -> None:
    for pattern, _ in self.overrides:
      if leaves and not any(pattern.search(path) for path in leaves):
        raise ValueError(
          f"mbf_optax: the override {pattern.pattern!r} matches no leaf; the paths are"
          f" {', '.join(leaves)}."
        )

  def _layer(self, path: str, params: Parameters) -> tuple[Layer, Bias | None]:
    """How to read the leaf at ``path``, and the bias beside it."""
    weight_path = weight_beside(path, self.convention, params)
    asked = self._asked(path, weight_path)
    if isinstance(asked, Layer):
      if _is_complex(params[path]) and not asked.elementwise:
        raise ValueError(
          f"mbf_optax: an override gives blocks to {path!r}, which is complex; blocks"
          ' are of real numbers, so read it as "rms".'
        )
      bias_path = self._bias_path(path, params)
      bias = None if bias_path is None else Bias(bias_path, params.shape(bias_path))
      return asked, bias
    if asked is None and weight_path is not None:
      return self._bias_layer(weight_path, path, params), None
    if asked is None and name_of(path) not in self.convention.weights:
      return Layer(estimator="rms"), None
    return self._weight_layer(path, params, asked)

  def _asked(self, path: str, weight_path: str | None) -> Layer | str | None:
    """What the first override says; one of the weight does not reach its bias."""
    for pattern, layer in self.overrides:
      of_weight = weight_path is not None and pattern.search(weight_path)
      if pattern.search(path) and not of_weight:
        return layer
    return None

  def _bias_layer(self, weight_path: str, path: str, params: Parameters) -> Layer:
    """Of a bias beside a weight; without effect where the weight's blocks hold it."""
    weight, bias = self._layer(weight_path, params)
    if weight.elementwise or _is_complex(params[path]):
      return Layer(estimator="rms")
    axes = range(params[path].ndim) if bias is None or bias.axes is None else bias.axes
    stack = [at for at, axis in enumerate(axes) if axis in weight.stack_axes]
    return Layer(estimator="inverse", stack_axes=tuple(stack))

  def _weight_layer(
    self, path: str, params: Parameters, asked: str | None
  ) -> tuple[Layer, Bias | None]:
    leaf = params[path]
    excluded = asked == "rms" or (asked is None and self.convention.excludes(path))
    if excluded or _is_complex(leaf) or leaf.size == 0:
      return Layer(estimator="rms"), None
    geometry = Geometry((), (), (), ())
    if leaf.ndim >= 2:
      geometry = self.convention.geometry(path, params, asked == "dense")
    if not (geometry.spatial if asked == "conv" else geometry.inputs):
      return self._without_blocks(path, leaf, asked), None
    offsets = math.prod(leaf.shape[axis] for axis in geometry.spatial)
    if asked == "conv" or 1 < offsets < _PATCH:
      layer = self._convolution(geometry, offsets, params.shape(path), asked)
    else:
      layer = self._dense_layer(geometry, params.shape(path), asked)
    bias_path = self._bias_path(path, params)
    if bias_path is None:
      return dataclasses.replace(layer, joins_bias=False), None
    bias = Bias(bias_path, params.shape(bias_path), geometry.bias_axes)
    alone = Reading(path, None, params.shape(path), layer)
    joins = layer.joins_bias and bias_order(alone, bias) is not None
    return dataclasses.replace(layer, joins_bias=joins), bias

  def _convolution(
    self,
    geometry: Geometry,
    offsets: int,
    shape: tuple[int, ...],
    asked: str | None,
  ) -> Layer:
    """One block per kernel, with a matrix of its own where that is small."""
    default: Estimator = "full" if offsets <= FULL_BLOCK else "shared"
    layer = self._of(geometry.spatial, geometry, _ESTIMATORS.get(asked, default))
    return self._bounded(dataclasses.replace(layer, joins_bias=False), shape)

  def _dense_layer(
    self, geometry: Geometry, shape: tuple[int, ...], asked: str | None
  ) -> Layer:
    """One block per neuron, over its inputs and offsets."""
    axes = tuple(sorted(geometry.spatial + geometry.inputs))
    layer = self._of(axes, geometry, _ESTIMATORS.get(asked, _ESTIMATORS[self.dense]))
    return self._bounded(layer, shape)

  def _of(
    self, axes: tuple[int, ...], geometry: Geometry, estimator: Estimator
  ) -> Layer:
    return Layer(
      block_axes=axes,
      estimator=estimator,
      stack_axes=geometry.stack_axes,
      rank=self.rank,
      full_limit=self.full_limit,
      block_limit=self.block_limit,
    )

  def _bounded(self, layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Within the bounds, unless a wider limit than the default is asked for."""
    asked = self.block_limit > Layer.block_limit
    return layer if asked else within_bounds(layer, shape)

  def _without_blocks(self, path: str, leaf: Any, asked: str | None) -> Layer:
    if asked in ("conv", "dense"):
      raise ValueError(
        f"mbf_optax: an override reads {path!r}, of shape {tuple(leaf.shape)}, as"
        f" {asked!r}, which needs {'spatial, ' if asked == 'conv' else ''}input and"
        ' output axes; read it as "rms" or give a Layer.'
      )
    return Layer(estimator="rms")

  def _bias_path(self, path: str, params: Parameters) -> str | None:
    """The bias that may join the blocks: real, and with no override of its own."""
    bias_path = bias_beside(path, self.convention, params)
    if bias_path is None or _is_complex(params[bias_path]):
      return None
    return bias_path if self._asked(bias_path, path) is None else None


def _is_complex(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
