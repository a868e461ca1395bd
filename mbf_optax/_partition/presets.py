"""The partitions of Flax, Haiku and Equinox models."""

from collections.abc import Sequence

from mbf_optax._partition.by_shape import ByShape
from mbf_optax._partition.channels_first import ChannelsFirst
from mbf_optax._partition.channels_last import ChannelsLast
from mbf_optax._partition.layer import Partition
from mbf_optax._partition.named import Dense, NamedPartition, Override

_FLAX = ChannelsLast()
_HAIKU = ChannelsLast(weights=("w", "w_i", "w_h"), bias="b")
_EQUINOX = ChannelsFirst()


def flax_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 256,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Flax parameters, Linen and NNX alike.

  A ``kernel`` of rank 2 is a dense layer: one block per neuron, over its input
  weights and its bias. Other kernels are convolutions: one block per pair of input
  and output channel, over the spatial offsets, with one matrix for all of a layer past
  36 offsets. Convolutions of one offset are dense layers over their input channels,
  and those of 196 offsets (14 x 14, as in patch embeddings) or more over offsets and
  input channels. The projections of attention (``query``, ``key``, ``value``, ``out``;
  any kernel whose bias has several axes) are neurons over the contracted axes. Layers
  stacked by ``nn.scan`` or ``nn.vmap``, on any axis, are recognised by their biases and
  norms, or by Linen's automatic names.
  Everything else (norms, embeddings, unnamed arrays, complex arrays) is read element
  by element.

  Args:
    dense: estimator of dense layers, see :class:`Layer`; ``"auto"`` leaves it to the
      optimizer.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block size for which ``"auto"`` may keep a matrix per neuron.
    block_limit: largest number of inputs (or outputs) that one matrix spans, lowered
      for layers of so few outputs (or inputs) that it would hold more than 40 floats a
      parameter; more than 256 is taken as it is.
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
      that is none of the above or whose pattern is no regular expression; when the
      partition is applied, for an override that matches no layer and for a reading that
      does not fit its array.

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
  conventions = (_FLAX, _HAIKU, _EQUINOX, ByShape(_FLAX, outputs_first=False))
  return NamedPartition.checked(
    conventions, dense, rank, full_limit, block_limit, overrides
  )


def haiku_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 256,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Haiku parameters, whose weights are called ``w`` and biases ``b``.

  Args:
    dense: see :func:`flax_partition`.
    rank: see :func:`flax_partition`.
    full_limit: see :func:`flax_partition`.
    block_limit: see :func:`flax_partition`.
    overrides: see :func:`flax_partition`.

  Returns:
    A function from a parameter tree to the readings of its layers.

  Raises:
    ValueError: as :func:`flax_partition`.

  Examples:
    >>> import jax, mbf_optax
    >>> w, b = (jax.ShapeDtypeStruct(s, "float32") for s in ((20, 5), (5,)))
    >>> (reading,) = mbf_optax.haiku_partition()({"mlp/~/linear_0": {"w": w, "b": b}})
    >>> print(reading.layer.estimator, reading.blocks, reading.block_size)
    auto 5 21
  """
  conventions = (_HAIKU, ByShape(_HAIKU, outputs_first=False))
  return NamedPartition.checked(
    conventions, dense, rank, full_limit, block_limit, overrides
  )


def equinox_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 256,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Equinox models, whose weights are ``(out, in, *spatial)``.

  Pass the model's arrays, ``eqx.filter(model, eqx.is_inexact_array)``. Weights in
  modules whose attribute is called embedding or norm are read element by element.

  Args:
    dense: see :func:`flax_partition`.
    rank: see :func:`flax_partition`.
    full_limit: see :func:`flax_partition`.
    block_limit: see :func:`flax_partition`.
    overrides: see :func:`flax_partition`; ``"dense"`` takes all axes but the first as
      inputs.

  Returns:
    A function from a parameter tree to the readings of its layers.

  Raises:
    ValueError: as :func:`flax_partition`.

  Examples:
    >>> import jax, mbf_optax
    >>> weight, bias = (jax.ShapeDtypeStruct(s, "float32") for s in ((5, 20), (5,)))
    >>> partition = mbf_optax.equinox_partition()
    >>> (reading,) = partition({"linear": {"weight": weight, "bias": bias}})
    >>> print(reading.layer.block_axes, reading.blocks, reading.block_size)
    (1,) 5 21
  """
  conventions = (_EQUINOX, ByShape(_EQUINOX, outputs_first=True))
  return NamedPartition.checked(
    conventions, dense, rank, full_limit, block_limit, overrides
  )
