"""The partitions of Flax, Haiku and Equinox models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mbf_optax._partition.by_shape import ByShape
from mbf_optax._partition.channels_first import ChannelsFirst
from mbf_optax._partition.channels_last import ChannelsLast
from mbf_optax._partition.equinox_types import EquinoxTypes
from mbf_optax._partition.layer import Partition
from mbf_optax._partition.named import NamedPartition
from mbf_optax._partition.overrides import Choices, Dense, Override

_FLAX = ChannelsLast()
_HAIKU = ChannelsLast(weights=("w", "w_i", "w_h"), bias="b")
_EQUINOX = ChannelsFirst()


def flax_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 1024,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Flax parameters, Linen and NNX alike; the default partition.

  A ``kernel`` of rank 2 is a dense layer: one block per neuron, over its input
  weights and its bias. Convolutions have one block per pair of input and output
  channel, over the spatial offsets, with one matrix for all of a layer past 36 offsets;
  :func:`mbf_adam` takes one per output channel, over all that feeds it.
  Convolutions of one offset are dense layers over their input channels, and those of
  196 offsets (14 x 14, as in patch embeddings) or more over offsets and input channels.
  Attention's projections (``query``, ``q_proj``, ``out``; any kernel whose bias has
  several axes) are neurons over the contracted axes. Layers stacked by ``nn.scan`` or
  ``nn.vmap``, on any axis, are recognised by their biases and norms, by kernels of too
  many axes in modules named like dense layers, or by Linen's automatic names.

  A kernel of three axes of which neither names nor biases tell what they are (a
  bias-free ``LinearGeneral`` of an unusual name, say) has blocks over the axis before
  the last, and no matrix is shared across its first axis: harmless if that is a stack.

  Arrays of other names are read by shape where that is safe. A matrix with a vector of
  its outputs beside it is a dense layer, whatever the two are called; so is a lone
  matrix, unless its name speaks of an embedding, a position, a norm or a token. The
  names of Haiku (``w``, ``b``) and Equinox (``weight``, ``(out, in)``) are known too.
  Everything else (norms, embeddings, complex arrays, other arrays of unknown names) is
  read element by element; an optimizer warns where that is most of a model.

  No reading holds more than 40 floats a parameter unless it is asked for.

  Args:
    dense: estimator of dense layers, see :class:`Layer`; ``"auto"`` leaves it to the
      optimizer.
    rank: number of gradients that ``"low_rank"`` layers keep.
    full_limit: largest block size for which ``"auto"`` may keep a matrix per neuron.
    block_limit: largest number of inputs (or outputs) that one matrix spans, lowered
      for layers of so few outputs (or inputs) that it would hold more than 40 floats a
      parameter; more than 1024 is taken as it is.
    overrides: pairs of a regular expression, searched for in the weight's path, and
      what to read it as: a :class:`Layer`, or one of ``"auto"``, ``"full"``,
      ``"shared"``, ``"low_rank"`` (the same blocks with that estimator),
      ``"two_sided"`` (likewise; of a convolution one block per output channel),
      ``"conv"`` (one block per kernel, also under :func:`mbf_adam` and where a kernel
      has one offset),
      ``"dense"`` (all axes but the last are inputs) and ``"rms"`` (element by element).
      The first match wins. One that matches nothing is an error, except in a tree of
      which ``optax.masked`` or ``optax.partition`` hide a part.

  Returns:
    A function from a parameter tree (arrays or ``jax.ShapeDtypeStruct``) to the
    readings of its layers, in the order of their paths in the tree.

  Raises:
    TypeError: for parameters in place of ``dense``, or overrides in a dictionary.
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
    Conv_0/kernel auto 512 9
  """
  conventions = (_FLAX, _HAIKU, _EQUINOX, ByShape(_FLAX, outputs_first=False))
  choices = Choices.checked(dense, rank, full_limit, block_limit, overrides)
  return NamedPartition(conventions, choices)


def haiku_partition(
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 1024,
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
  choices = Choices.checked(dense, rank, full_limit, block_limit, overrides)
  return NamedPartition(conventions, choices)


def equinox_partition(
  model: Any = None,
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 1024,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of Equinox models, whose weights are ``(out, in, *spatial)``.

  Pass the model's arrays to the optimizer, ``eqx.filter(model, eqx.is_inexact_array)``,
  and the model itself to this function: the types of its layers then say what they are.
  Without it, weights in modules whose attribute is called embedding or norm (``wte``,
  ``ln_1``; whole words) are read element by element unless a bias tells otherwise.

  Args:
    model: the ``eqx.Module``, or one that has its structure; not kept.
    dense: see :func:`flax_partition`.
    rank: see :func:`flax_partition`.
    full_limit: see :func:`flax_partition`.
    block_limit: see :func:`flax_partition`.
    overrides: see :func:`flax_partition`; ``"dense"`` takes all axes but the first as
      inputs.

  Returns:
    A function from a parameter tree to the readings of its layers.

  Raises:
    TypeError: for a model in which no layer of ``equinox.nn`` is.
    ValueError: as :func:`flax_partition`.

  Examples:
    >>> import jax, mbf_optax
    >>> weight, bias = (jax.ShapeDtypeStruct(s, "float32") for s in ((5, 20), (5,)))
    >>> partition = mbf_optax.equinox_partition()
    >>> (reading,) = partition({"linear": {"weight": weight, "bias": bias}})
    >>> print(reading.layer.block_axes, reading.blocks, reading.block_size)
    (1,) 5 21
  """
  named = (_EQUINOX, ByShape(_EQUINOX, outputs_first=True))
  types = () if model is None else (EquinoxTypes.of(model),)
  choices = Choices.checked(dense, rank, full_limit, block_limit, overrides)
  return NamedPartition((*types, *named), choices)


PRESETS: Mapping[str, Callable[[], Partition]] = {
  "flax_partition": flax_partition,
  "haiku_partition": haiku_partition,
  "equinox_partition": equinox_partition,
}
"""Every preset by its name."""
