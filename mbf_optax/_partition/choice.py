"""What an optimizer makes of layers that leave the estimator to it."""

import dataclasses
from collections.abc import Mapping

from mbf_optax._partition.bounds import FULL_BLOCK, within_bounds
from mbf_optax._partition.layer import EstimatorName, Layer, Reading

LEAST_OUTPUTS = 5
"""Dense layers of fewer outputs are Adam's under ``mbf_adam``, convolutions' blocks are
their kernels."""

BLOCK_LIMIT = 128
"""Where ``mbf_adam`` cuts wide layers at the latest. Smaller matrices are cheaper, and
its lengths do not depend on the cut. Those of ``mbf`` do: it diverges at rates that
suit whole matrices."""

MOST_INPUTS = 32
"""So are those of more inputs for every output."""

_NOT_OF_MBF = {"two_sided": 'use "shared" or "full", or mbf_adam'}
_NOT_OF_MBF_ADAM = {"low_rank": 'use "shared" with a smaller block_limit, or mbf'}
"""What to do about the estimators that an optimizer does not have."""


def for_mbf(reading: Reading) -> list[Reading]:
  """A matrix for every block while blocks are small, one for all of them otherwise."""
  _check("mbf", reading, _NOT_OF_MBF)
  most = FULL_BLOCK if reading.layer.channel_axes else reading.layer.full_limit
  is_small = reading.block_size <= most
  return [_chosen(reading, "full" if is_small else "shared")]


def for_mbf_adam(reading: Reading) -> list[Reading]:
  """Matrices on both sides of neurons that fill them, kernels or elements otherwise."""
  _check("mbf_adam", reading, _NOT_OF_MBF_ADAM)
  if not reading.layer.is_open:
    return [reading]
  limit = min(reading.layer.block_limit, BLOCK_LIMIT)
  layer = dataclasses.replace(reading.layer, block_limit=limit)
  reading = reading._replace(layer=layer)
  neurons = _neurons(reading)
  if _fills_matrices(neurons):
    return [_chosen(neurons, "two_sided")]
  return for_mbf(reading) if layer.channel_axes else _single_elements(reading)


def _check(optimizer: str, reading: Reading, missing: Mapping[str, str]) -> None:
  """Raises a ``ValueError`` for an estimator that the optimizer does not have."""
  estimator = reading.layer.estimator
  if estimator in missing:
    raise ValueError(
      f'mbf_optax: {reading.path!r} is read as "{estimator}", which {optimizer} does'
      f" not have; {missing[estimator]}."
    )


def _neurons(reading: Reading) -> Reading:
  """The reading, with all that feeds an output channel of a convolution in one block.

  The matrix of all its inputs, which all neurons share, learns more than a matrix for
  every kernel, and mostly holds less: not with few output channels or one of input.
  """
  axes = tuple(sorted(reading.layer.block_axes + reading.layer.channel_axes))
  layer = dataclasses.replace(reading.layer, block_axes=axes, channel_axes=())
  return reading._replace(layer=layer)


def _fills_matrices(reading: Reading) -> bool:
  """Whether steps fill matrices of the inputs, which gain one vector an output each."""
  inputs, outputs = reading.block_size, reading.blocks_per_layer
  return inputs > 1 and outputs >= LEAST_OUTPUTS and inputs <= MOST_INPUTS * outputs


def _chosen(reading: Reading, estimator: EstimatorName) -> Reading:
  """The reading with an estimator where it names none, its matrices within bounds."""
  if not reading.layer.is_open:
    return reading
  layer = dataclasses.replace(reading.layer, estimator=estimator, channel_axes=())
  return reading._replace(layer=within_bounds(layer, reading.shape))


def _single_elements(reading: Reading) -> list[Reading]:
  """The weight array and the bias of a layer, each read element by element."""
  layer = Layer(estimator="rms")
  shapes = {reading.path: reading.shape}
  if reading.bias_path is not None:
    shapes[reading.bias_path] = reading.bias_shape
  return [Reading(path, None, shape, layer) for path, shape in shapes.items()]
