"""What an optimizer makes of layers that leave the estimator to it."""

import dataclasses
import math
from collections.abc import Mapping

from mbf_optax._partition.layer import EstimatorName, Layer, Reading

LEAST_OUTPUTS = 5
"""Dense layers of fewer outputs are Adam's under ``mbf_adam``."""

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
  is_small = reading.block_size <= reading.layer.full_limit
  return _chosen(reading, "full" if is_small else "shared")


def for_mbf_adam(reading: Reading) -> list[Reading]:
  """Matrices on both sides, or Adam's update for layers that fill none."""
  _check("mbf_adam", reading, _NOT_OF_MBF_ADAM)
  if reading.layer.is_open and not _fills_matrices(reading):
    return _single_elements(reading)
  return _chosen(reading, "two_sided", BLOCK_LIMIT)


def _check(optimizer: str, reading: Reading, missing: Mapping[str, str]) -> None:
  """Raises a ``ValueError`` for an estimator that the optimizer does not have."""
  estimator = reading.layer.estimator
  if estimator in missing:
    raise ValueError(
      f'mbf_optax: {reading.path!r} is read as "{estimator}", which {optimizer} does'
      f" not have; {missing[estimator]}."
    )


def _fills_matrices(reading: Reading) -> bool:
  """Whether steps fill matrices of the inputs, which gain one vector an output each."""
  inputs, outputs = reading.block_size, reading.blocks_per_layer
  return inputs > 1 and outputs >= LEAST_OUTPUTS and inputs <= MOST_INPUTS * outputs


def _chosen(
  reading: Reading, estimator: EstimatorName, most: float = math.inf
) -> list[Reading]:
  """The reading with an estimator where it names none, cut at ``most`` inputs."""
  if not reading.layer.is_open:
    return [reading]
  limit = min(reading.layer.block_limit, most)
  layer = dataclasses.replace(
    reading.layer, estimator=estimator, block_limit=int(limit)
  )
  return [reading._replace(layer=layer)]


def _single_elements(reading: Reading) -> list[Reading]:
  """The weight array and the bias of a layer, each read element by element."""
  layer = Layer(estimator="rms")
  shapes = {reading.path: reading.shape}
  if reading.bias_path is not None:
    shapes[reading.bias_path] = reading.bias_shape
  return [Reading(path, None, shape, layer) for path, shape in shapes.items()]
