"""Reading Flax parameter trees: which leaves form a layer, and of which kind.

Only names and shapes are looked at, so Linen variables, NNX states, boxed parameters
and plain dictionaries that follow Flax's names are all read by the same rules.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from mbf_optax import tree
from mbf_optax.flax_names import output_axes, sibling, single_offset, stacked_axes
from mbf_optax.layers import Estimator, Layer, Partition, Reading, read

Dense = Literal["auto", "full", "shared", "low_rank"]
Override = tuple[str, Layer | str]

_ESTIMATORS: dict[str | None, Estimator] = {
  "full": "full",
  "shared": "shared",
  "low_rank": "low_rank",
}
_SHARED_LIMIT = 8193  # past this an n x n matrix is no longer a reasonable default


def flax_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Flax parameters, Linen and NNX alike.

  A ``kernel`` of rank 2 is a dense layer: one block per neuron, over its input
  weights and its bias. Other kernels are convolutions: one block per pair of input
  and output channel, over the spatial offsets; convolutions with a single spatial
  offset are dense layers over their input channels. The projections of attention
  (``query``, ``key``, ``value``, ``out``; any kernel whose bias has several axes) are
  neurons over the contracted axes. Layers stacked on a leading axis by ``nn.scan`` or
  ``nn.vmap`` are recognised by their biases and norms, or by Linen's automatic names.
  Everything else (norms, embeddings, unnamed arrays, complex arrays) is read element
  by element.

  Args:
    dense: estimator of dense layers. ``"auto"`` is ``"full"`` for blocks of up to
      ``full_limit`` elements, then ``"shared"``, and ``"low_rank"`` where a layer is
      too wide for a matrix of its width.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block size for which ``"auto"`` keeps a matrix per neuron.
    overrides: pairs of a regular expression, searched for in the weight's path, and
      what to read it as: a :class:`Layer`, or one of ``"full"``, ``"shared"``,
      ``"low_rank"`` (the same blocks with that estimator), ``"conv"`` (one block per
      kernel, also where a kernel has one offset), ``"dense"`` (all axes but the last
      are inputs) and ``"rms"`` (element by element). The first match wins.

  Returns:
    A function from a parameter tree (arrays or ``jax.ShapeDtypeStruct``) to the
    readings of its layers, in the order of their paths in the tree.

  Raises:
    ValueError: here for an unknown ``dense``, a rank or limit below 1, or an override
      that is none of the above; when the partition is applied, for an override that
      matches no layer and for a reading that does not fit its array.

  References:
    Bahamou, Goldfarb and Ren, `A Mini-Block Fisher Method for Deep Neural Networks
    <https://arxiv.org/abs/2202.04124>`_, 2023, section 3 and section 5 ("Spacial
    average").

  Examples:
    >>> import jax, mbf_optax
    >>> kernel = jax.ShapeDtypeStruct((3, 3, 16, 32), "float32")
    >>> bias = jax.ShapeDtypeStruct((32,), "float32")
    >>> partition = mbf_optax.flax_partition()
    >>> for r in partition({"Conv_0": {"bias": bias, "kernel": kernel}}):
    ...   print(r.path, r.layer.estimator, r.blocks, r.block_size)
    Conv_0/bias inverse 32 1
    Conv_0/kernel full 512 9
  """
  if dense not in ("auto", *_ESTIMATORS):
    raise ValueError(
      f"flax_partition: unknown dense={dense!r}; use 'auto', 'full', 'shared' or"
      " 'low_rank'."
    )
  for name, value in (("rank", rank), ("full_limit", full_limit)):
    if value < 1:
      raise ValueError(f"flax_partition: {name} is {value}; it must be at least 1.")
  return _FlaxPartition(
    dense, rank, full_limit, tuple(_Override.parse(*pair) for pair in overrides)
  )


class _Override(NamedTuple):
  pattern: re.Pattern[str]
  layer: Layer | str

  @classmethod
  def parse(cls, pattern: str, layer: Layer | str) -> "_Override":
    known = (*_ESTIMATORS, "conv", "dense", "rms")
    if not isinstance(layer, Layer) and layer not in known:
      raise ValueError(
        f"flax_partition: the override {pattern!r} asks for {layer!r}; use a Layer or"
        f" one of {', '.join(map(repr, known))}."
      )
    return cls(re.compile(pattern), layer)


@dataclasses.dataclass(frozen=True)
class _FlaxPartition:
  dense: Dense
  rank: int
  full_limit: int
  overrides: tuple[_Override, ...]

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    leaves = tree.flatten(params)
    self._check_overrides(leaves)
    readings, joined = {}, set()
    for path, leaf in leaves.items():
      bias = _bias_of(path, leaves)
      readings[path] = read(path, tuple(leaf.shape), self._layer(path, leaves), bias)
      joined.add(readings[path].bias_path)
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _check_overrides(self, leaves: tree.Leaves) -> None:
    for pattern, _ in self.overrides:
      if leaves and not any(pattern.search(path) for path in leaves):
        raise ValueError(
          f"flax_partition: the override {pattern.pattern!r} matches no leaf; the paths"
          f" are {', '.join(leaves)}."
        )

  def _layer(self, path: str, leaves: tree.Leaves) -> Layer:
    kernel_path = sibling(path, "bias", "kernel", leaves)
    asked = self._asked(path, kernel_path)
    if isinstance(asked, Layer):
      return asked
    stack = stacked_axes(path, leaves)
    if asked is None and kernel_path is not None:
      return self._bias_layer(kernel_path, path, leaves)
    if asked is None and path.rpartition("/")[2] != "kernel":
      return Layer(estimator="rms", stack_axes=stack)
    return self._weight_layer(path, leaves, stack, asked)

  def _asked(self, path: str, kernel_path: str | None) -> Layer | str | None:
    """What the first override says; one of the kernel does not reach its bias."""
    for pattern, layer in self.overrides:
      of_kernel = kernel_path is not None and pattern.search(kernel_path)
      if pattern.search(path) and not of_kernel:
        return layer
    return None

  def _bias_layer(self, kernel_path: str, path: str, leaves: tree.Leaves) -> Layer:
    """Of a bias beside a kernel; without effect where the kernel's blocks hold it."""
    kernel, bias = self._layer(kernel_path, leaves), leaves[path]
    paired = not kernel.elementwise and not _is_complex(bias)
    return Layer(
      estimator="inverse" if paired else "rms",
      stack_axes=min(kernel.stack_axes, bias.ndim),
    )

  def _weight_layer(
    self, path: str, leaves: tree.Leaves, stack: int, asked: str | None
  ) -> Layer:
    leaf = leaves[path]
    if asked in ("conv", "dense") and leaf.ndim - stack < (3 if asked == "conv" else 2):
      raise ValueError(
        f"flax_partition: an override reads {path!r}, of shape {tuple(leaf.shape)}, as"
        f" {asked!r}, which needs {'spatial, ' if asked == 'conv' else ''}input and"
        ' output axes; read it as "rms" or give a Layer.'
      )
    if asked == "rms" or _is_complex(leaf) or leaf.size == 0 or leaf.ndim - stack < 2:
      return Layer(estimator="rms", stack_axes=stack)
    outputs = 1 if asked == "dense" else output_axes(path, leaves, stack)
    per_kernel = outputs is None and not single_offset(leaf, stack)
    if per_kernel or asked == "conv":
      estimator = _ESTIMATORS.get(asked, "full")
      axes = tuple(range(stack, leaf.ndim - 2))
      return Layer(axes, estimator, stack, joins_bias=False, rank=self.rank)
    axes = tuple(range(stack, leaf.ndim - (outputs or 1)))
    bias = _bias_of(path, leaves)
    joins = (
      bias is not None and bias[1] == leaf.shape[:stack] + leaf.shape[axes[-1] + 1 :]
    )
    size = math.prod(leaf.shape[axis] for axis in axes) + joins
    estimator = _ESTIMATORS.get(asked) or self._dense_estimator(size)
    return Layer(axes, estimator, stack, joins_bias=joins, rank=self.rank)

  def _dense_estimator(self, block_size: int) -> Estimator:
    if self.dense != "auto":
      return self.dense
    if block_size <= self.full_limit:
      return "full"
    return "shared" if block_size <= _SHARED_LIMIT else "low_rank"


def _bias_of(path: str, leaves: tree.Leaves) -> tuple[str, tuple[int, ...]] | None:
  bias_path = sibling(path, "kernel", "bias", leaves)
  return None if bias_path is None else (bias_path, tuple(leaves[bias_path].shape))


def _is_complex(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
