"""Reading Flax parameter trees: which leaves form a layer, and of which kind.

Only names and shapes are looked at, so Linen variables, NNX states, boxed parameters
and plain dictionaries that follow Flax's names are all read by the same rules.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

from mbf_optax import tree
from mbf_optax.layers import Layer, Partition, Reading, read

Dense = Literal["auto", "full", "shared", "low_rank"]
Override = tuple[str, Layer | str]

_ESTIMATORS = ("full", "shared", "low_rank")
_SHARED_LIMIT = 8193  # past this an n x n matrix is no longer a reasonable default
_LOGGER = logging.getLogger("mbf_optax")


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
    >>> for reading in partition({"Conv_0": {"bias": bias, "kernel": kernel}}):
    ...   print(reading.path, reading.layer.estimator, reading.blocks, reading.block_size)
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


@dataclasses.dataclass(frozen=True)
class _Override:
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
    readings, joined = {}, set()
    for path, leaf in leaves.items():
      bias_path = _sibling(path, "kernel", "bias", leaves)
      bias = None if bias_path is None else (bias_path, tuple(leaves[bias_path].shape))
      layer = self._layer(path, leaves, bias)
      readings[path] = read(path, tuple(leaf.shape), layer, bias)
      joined.add(readings[path].bias_path)
    self._check_overrides(leaves)
    return tuple(reading for path, reading in readings.items() if path not in joined)

  def _layer(
    self, path: str, leaves: tree.Leaves, bias: tuple[str, tuple[int, ...]] | None
  ) -> Layer:
    override = next((o for o in self.overrides if o.pattern.search(path)), None)
    if override is not None and isinstance(override.layer, Layer):
      return override.layer
    asked = None if override is None else override.layer
    kernel_path = _sibling(path, "bias", "kernel", leaves)
    if asked in (None, *_ESTIMATORS) and kernel_path is not None:
      return self._bias_layer(kernel_path, path, leaves)
    layer = self._default(path, leaves, asked)
    fits = bias is None or bias[1] == read(path, leaves[path].shape, layer).batch_shape
    return layer if fits else dataclasses.replace(layer, joins_bias=False)

  def _bias_layer(self, kernel_path: str, path: str, leaves: tree.Leaves) -> Layer:
    """Of a bias beside a kernel; ignored where the kernel's blocks contain it."""
    kernel = self._layer(kernel_path, leaves, (path, tuple(leaves[path].shape)))
    paired = not kernel.elementwise and not _is_complex(leaves[path])
    return Layer(
      estimator="inverse" if paired else "rms",
      stack_axes=min(kernel.stack_axes, leaves[path].ndim),
    )

  def _default(self, path: str, leaves: tree.Leaves, asked: str | None) -> Layer:
    leaf = leaves[path]
    stack = _stacked_axes(path, leaves)
    ndim = leaf.ndim - stack
    geometric = asked is not None or path.rpartition("/")[2] == "kernel"
    if asked == "rms" or not geometric or _is_complex(leaf) or leaf.size == 0 or ndim < 2:
      return Layer(estimator="rms", stack_axes=stack)
    outputs = _output_axes(path, leaves, stack)
    if asked == "dense":
      outputs = 1
    if asked == "conv" or (outputs is None and not _single_offset(leaf, stack)):
      axes = tuple(range(stack, leaf.ndim - 2))
      estimator = asked if asked in _ESTIMATORS else "full"
      return Layer(axes, estimator, stack, joins_bias=False, rank=self.rank)
    axes = tuple(range(stack, leaf.ndim - (outputs or 1)))
    estimator = asked if asked in _ESTIMATORS else self.dense
    layer = Layer(axes, "full", stack, rank=self.rank)
    if estimator == "auto":
      estimator = self._estimator_for(read(path, leaf.shape, layer).block_size + 1)
    return dataclasses.replace(layer, estimator=estimator)

  def _estimator_for(self, block_size: int) -> str:
    if block_size <= self.full_limit:
      return "full"
    return "shared" if block_size <= _SHARED_LIMIT else "low_rank"

  def _check_overrides(self, leaves: tree.Leaves) -> None:
    for override in self.overrides:
      if leaves and not any(override.pattern.search(path) for path in leaves):
        raise ValueError(
          f"flax_partition: the override {override.pattern.pattern!r} matches no leaf;"
          f" the paths are {', '.join(leaves)}."
        )


def _is_complex(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def _sibling(path: str, name: str, other: str, leaves: tree.Leaves) -> str | None:
  """Path of the leaf ``other`` beside ``path`` if that is called ``name``."""
  module, _, own = path.rpartition("/")
  candidate = f"{module}/{other}" if module else other
  return candidate if own == name and candidate in leaves else None


def _single_offset(leaf: Any, stack: int) -> bool:
  return all(size == 1 for size in leaf.shape[stack:-2])


def _output_axes(path: str, leaves: tree.Leaves, stack: int) -> int | None:
  """Number of trailing axes that count neurons; ``None`` for a convolution."""
  ndim = leaves[path].ndim - stack
  if ndim == 2 or _is_attention_output(path, leaves):
    return 1
  if _is_attention_input(path, leaves):
    return ndim - 1
  bias_path = _sibling(path, "kernel", "bias", leaves)
  bias_ndim = 0 if bias_path is None else leaves[bias_path].ndim - stack
  return bias_ndim if bias_ndim > 1 else None


def _is_attention_input(path: str, leaves: tree.Leaves) -> bool:
  module = path.split("/")[-2:-1]
  return module in (["query"], ["key"], ["value"]) and leaves[path].ndim >= 3


def _is_attention_output(path: str, leaves: tree.Leaves) -> bool:
  attention, _, module = path.rpartition("/")[0].rpartition("/")
  query = f"{attention}/query/kernel" if attention else "query/kernel"
  return module == "out" and query in leaves and leaves[path].ndim >= 3


_RANK_IN_STACK = {"kernel": 3, "embedding": 3, "bias": 2, "scale": 2}
_LIFTED_NAME = re.compile(r"(Scan|Vmap)[A-Z]")


def _stacked_axes(path: str, leaves: tree.Leaves) -> int:
  """Number of leading axes of ``path`` that stack independent layers."""
  if _is_attention_input(path, leaves) or _is_attention_output(path, leaves):
    return leaves[path].ndim - 3
  stack = 0
  while any(_is_stack(module, leaves, stack) for module in _modules(path)):
    stack += 1
  return stack


def _modules(path: str) -> list[str]:
  keys = path.split("/")[:-1]
  return ["/".join(keys[: i + 1]) for i in range(len(keys))]


def _is_stack(module: str, leaves: tree.Leaves, stack: int) -> bool:
  """Whether all leaves of ``module`` have a stacked axis at position ``stack``.

  They must share its size and have one axis more than their kind needs, and a bias, a
  norm's scale or Linen's name for a lifted module must say so too: a lone kernel of
  rank 3 could as well be a convolution.
  """
  evident = _LIFTED_NAME.match(module.rpartition("/")[2]) is not None
  sizes = set()
  for path, leaf in leaves.items():
    if path.startswith(module + "/"):
      name = path.rpartition("/")[2]
      if leaf.ndim - stack < _RANK_IN_STACK.get(name, 1):
        return False
      sizes.add(leaf.shape[stack])
      evident |= name in ("bias", "scale")
  return evident and len(sizes) == 1
