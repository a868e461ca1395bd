"""Reading a parameter tree: which leaves form a layer, and with which estimator."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from mbf_optax._partition.conventions import (
  Convention,
  Geometry,
  bias_beside,
  name_of,
  weight_beside,
)
from mbf_optax._partition.layer import Bias, Estimator, Layer, Reading, read
from mbf_optax._tree import paths as tree


def joins(bias_shape, batch_shape):
  return [n for n in bias_shape if n != 1] == [n for n in batch_shape if n != 1]


Dense = Literal["auto", "full", "shared", "low_rank"]
Override = tuple[str, Layer | str]

_ESTIMATORS: dict[str | None, Estimator] = {
  "full": "full",
  "shared": "shared",
  "two_sided": "two_sided",
  "low_rank": "low_rank",
}
_SHARED_LIMIT = 8193  # past this an n x n matrix is no longer a reasonable default


class _Override(NamedTuple):
  pattern: re.Pattern[str]
  layer: Layer | str

  @classmethod
  def parse(cls, pattern: str, layer: Layer | str) -> "_Override":
    known = (*_ESTIMATORS, "conv", "dense", "rms")
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


@dataclasses.dataclass(frozen=True)
class NamedPartition:
  """Reads layers by the names and shapes of a library's convention.

  Attributes:
    convention: names of weights and biases, and their axes.
    dense: estimator of dense layers, or ``"auto"``.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block for which ``"auto"`` keeps a matrix per neuron.
    overrides: what to read otherwise, first match first.
  """

  convention: Convention
  dense: Dense
  rank: int
  full_limit: int
  overrides: tuple[_Override, ...]

  @classmethod
  def checked(
    cls,
    convention: Convention,
    dense: Dense,
    rank: int,
    full_limit: int,
    overrides: Sequence[Override],
  ) -> "NamedPartition":
    """A partition of checked arguments; see :func:`mbf_optax.flax_partition`."""
    if dense not in ("auto", *_ESTIMATORS):
      raise ValueError(
        f"mbf_optax: the partition got dense={dense!r}; use 'auto', 'full', 'shared' or"
        " 'low_rank'."
      )
    for name, value in (("rank", rank), ("full_limit", full_limit)):
      if value < 1:
        raise ValueError(
          f"mbf_optax: the partition's {name} is {value}; it must be at least 1."
        )
    parsed = tuple(_Override.parse(*pair) for pair in overrides)
    return cls(convention, dense, rank, full_limit, parsed)

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    leaves = tree.flatten(params)
    self._check_overrides(leaves)
    readings, joined = {}, set()
    for path, leaf in leaves.items():
      bias = self._bias_of(path, leaves)
      readings[path] = read(path, tuple(leaf.shape), self._layer(path, leaves), bias)
      joined.add(readings[path].bias_path)
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _check_overrides(self, leaves: tree.Leaves) -> None:
    for pattern, _ in self.overrides:
      if leaves and not any(pattern.search(path) for path in leaves):
        raise ValueError(
          f"mbf_optax: the override {pattern.pattern!r} matches no leaf; the paths are"
          f" {', '.join(leaves)}."
        )

  def _layer(self, path: str, leaves: tree.Leaves) -> Layer:
    weight_path = weight_beside(path, self.convention, leaves)
    asked = self._asked(path, weight_path)
    if isinstance(asked, Layer):
      if _is_complex(leaves[path]) and not asked.elementwise:
        raise ValueError(
          f"mbf_optax: an override gives blocks to {path!r}, which is complex; blocks"
          ' are of real numbers, so read it as "rms".'
        )
      return asked
    if asked is None and weight_path is not None:
      return self._bias_layer(weight_path, path, leaves)
    if asked is None and name_of(path) not in self.convention.weights:
      return Layer(estimator="rms")
    return self._weight_layer(path, leaves, asked)

  def _asked(self, path: str, weight_path: str | None) -> Layer | str | None:
    """What the first override says; one of the weight does not reach its bias."""
    for pattern, layer in self.overrides:
      of_weight = weight_path is not None and pattern.search(weight_path)
      if pattern.search(path) and not of_weight:
        return layer
    return None

  def _bias_layer(self, weight_path: str, path: str, leaves: tree.Leaves) -> Layer:
    """Of a bias beside a weight; without effect where the weight's blocks hold it."""
    weight, bias = self._layer(weight_path, leaves), leaves[path]
    if weight.elementwise or _is_complex(bias):
      return Layer(estimator="rms")
    return Layer(
      estimator="inverse",
      stack_axes=tuple(range(min(len(weight.stack_axes), bias.ndim))),
    )

  def _weight_layer(self, path: str, leaves: tree.Leaves, asked: str | None) -> Layer:
    leaf = leaves[path]
    excluded = asked == "rms" or (asked is None and self.convention.excludes(path))
    if excluded or _is_complex(leaf) or leaf.size == 0:
      return Layer(estimator="rms")
    stack, spatial, inputs = Geometry(0, (), ())
    if leaf.ndim >= 2:
      stack, spatial, inputs = self.convention.geometry(path, leaves, asked == "dense")
    if not (spatial if asked == "conv" else inputs):
      return self._without_blocks(path, leaf, asked)
    estimator = _ESTIMATORS.get(asked)
    if asked == "conv" or any(leaf.shape[axis] > 1 for axis in spatial):
      per_kernel = estimator or "full"
      return Layer(
        spatial, per_kernel, tuple(range(stack)), joins_bias=False, rank=self.rank
      )
    axes = tuple(sorted(spatial + inputs))
    counted = [size for axis, size in enumerate(leaf.shape) if axis not in axes]
    bias = self._bias_of(path, leaves)
    joined = bias is not None and joins(bias[1], tuple(counted))
    size = math.prod(leaf.shape[axis] for axis in axes) + joined
    estimator = estimator or self._dense_estimator(size)
    return Layer(
      axes, estimator, tuple(range(stack)), joined, self.rank, self.full_limit
    )

  def _without_blocks(self, path: str, leaf: Any, asked: str | None) -> Layer:
    if asked in ("conv", "dense"):
      raise ValueError(
        f"mbf_optax: an override reads {path!r}, of shape {tuple(leaf.shape)}, as"
        f" {asked!r}, which needs {'spatial, ' if asked == 'conv' else ''}input and"
        ' output axes; read it as "rms" or give a Layer.'
      )
    return Layer(estimator="rms")

  def _dense_estimator(self, block_size: int) -> Estimator:
    return self.dense

  def _bias_of(self, path: str, leaves: tree.Leaves) -> Bias | None:
    """The bias that may join the blocks: real, and with no override of its own."""
    bias_path = bias_beside(path, self.convention, leaves)
    if bias_path is None or _is_complex(leaves[bias_path]):
      return None
    if self._asked(bias_path, path) is not None:
      return None
    return Bias(bias_path, tuple(leaves[bias_path].shape))


def _is_complex(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
