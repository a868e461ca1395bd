"""The optimizers, each called as ``optax.adam(learning_rate)`` is."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import mbf_optax
from benchmarks.baselines import soap
from benchmarks.swap.problem import Factory

Rate = optax.ScalarOrSchedule


class Optimizer(NamedTuple):
  """What takes Adam's place.

  Attributes:
    build: the transformation from Adam's learning rate, a number or a schedule, and the
      factory of the partition that ``mbf_adam`` needs, or ``None``.
    settings: keyword arguments besides the learning rate.
    version: of the library that it is from.
  """

  build: Callable[[Rate, Factory | None], optax.GradientTransformation]
  settings: Mapping[str, Any] = {}
  version: str = f"optax {optax.__version__}"


def _soap(rate: Rate, partition: Factory | None) -> optax.GradientTransformation:
  del partition
  return soap(rate)


def _muon(rate: Rate, partition: Factory | None) -> optax.GradientTransformation:
  del partition
  # An update of muon is as long as one of Adam's with this root mean square, which is
  # what lets it be tried at Adam's rate at all.
  return optax.contrib.muon(rate, consistent_rms=0.2)


def mbf_adam(settings: Mapping[str, Any]) -> Optimizer:
  """``mbf_adam`` with keyword arguments.

  Args:
    settings: of ``mbf_adam``. ``"partition"``, if it is there, holds the keyword
      arguments of the partition that belongs to the problem's library.
  """

  def build(rate: Rate, partition: Factory | None) -> optax.GradientTransformation:
    arguments = dict(settings)
    reading = arguments.pop("partition", None)
    if reading is not None or partition is not None:
      factory = partition or mbf_optax.flax_partition
      arguments["partition"] = factory(**(reading or {}))
    return mbf_optax.mbf_adam(rate, **arguments)

  return Optimizer(build, settings, f"mbf_optax {mbf_optax.__version__}")


OPTIMIZERS = {
  "adam": Optimizer(lambda rate, partition: optax.adam(rate)),
  "mbf_adam": mbf_adam({}),
  "soap": Optimizer(_soap),
  "muon": Optimizer(_muon),
  "nadam": Optimizer(lambda rate, partition: optax.nadam(rate)),
}


def variant(text: str) -> tuple[str, Optimizer]:
  """``mbf_adam`` with a name and settings from ``NAME={...}``.

  Raises:
    argparse.ArgumentTypeError: if the text is not a name and a JSON object, or the
      name is taken.
  """
  name, _, settings = text.partition("=")
  try:
    parsed = json.loads(settings)
  except json.JSONDecodeError as error:
    raise argparse.ArgumentTypeError(
      f"{text!r}: after the = stands no JSON: {error}"
    ) from None
  if not name or not isinstance(parsed, dict):
    raise argparse.ArgumentTypeError(
      f"{text!r}: give a name and a JSON object, as in"
      " 'slow={\"curvature_ema\": 0.99}'"
    )
  if name in OPTIMIZERS:
    raise argparse.ArgumentTypeError(
      f"{text!r}: {name} is taken; give the variant another name"
    )
  return name, mbf_adam(parsed)
