"""The optimizers, each called as ``optax.adam(learning_rate)`` is."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import mbf_optax
from benchmarks.swap.problem import Problem


class Optimizer(NamedTuple):
  """What takes Adam's place.

  Attributes:
    build: the transformation for a problem.
    settings: keyword arguments besides the learning rate.
  """

  build: Callable[[Problem], optax.GradientTransformation]
  settings: Mapping[str, Any] = {}


def _soap(problem: Problem) -> optax.GradientTransformation:
  from benchmarks.baselines import soap

  return soap(problem.rate)


def _muon(problem: Problem) -> optax.GradientTransformation:
  # An update of muon is as long as one of Adam's with this root mean square, which is
  # what lets it be tried at Adam's rate at all.
  return optax.contrib.muon(problem.rate, consistent_rms=0.2)


def mbf_adam(settings: Mapping[str, Any]) -> Optimizer:
  """``mbf_adam`` with keyword arguments.

  Args:
    settings: of ``mbf_adam``. ``"partition"``, if it is there, holds the keyword
      arguments of the partition that belongs to the problem's library.
  """

  def build(problem: Problem) -> optax.GradientTransformation:
    arguments = dict(settings)
    reading = arguments.pop("partition", None)
    if reading is not None or problem.partition is not None:
      factory = problem.partition or mbf_optax.flax_partition
      arguments["partition"] = factory(**(reading or {}))
    return mbf_optax.mbf_adam(problem.rate, **arguments)

  return Optimizer(build, settings)


OPTIMIZERS = {
  "adam": Optimizer(lambda problem: optax.adam(problem.rate)),
  "mbf_adam": mbf_adam({}),
  "soap": Optimizer(_soap),
  "muon": Optimizer(_muon),
  "nadam": Optimizer(lambda problem: optax.nadam(problem.rate)),
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
