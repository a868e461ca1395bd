"""A word to the user whose arrays a partition does not know."""

import collections
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mbf_optax._partition.layer import Partition, Reading

_KEPT = 64
_PASSED_THROUGH = ("mbf_optax", "optax", "jax", "flax", "contextlib", "functools")
_warned: "collections.OrderedDict[Any, None]" = collections.OrderedDict()


class MostlyElementwise(UserWarning):
  """Most of a model is trained as by Adam, since nothing is known of its arrays."""


def warn_if_mostly_elementwise(
  readings: Sequence[Reading],
  params: Any,
  presets: Mapping[str, Callable[[], Partition]],
  reasons: Mapping[str, str],
) -> None:
  """Warns where most elements are read one by one for want of knowledge.

  Counted are arrays of two or more axes. What an override, the name of a norm or an
  embedding or a complex dtype reads element by element is known and gives no warning.
  The warning comes once for a tree's paths and shapes.

  Args:
    readings: of ``params``.
    params: the parameter tree, whose presets are tried.
    presets: partitions to recommend, by name.
    reasons: by path, where the partition has traced how the arrays are used.
  """
  shaped = [reading for reading in readings if len(reading.shape) > 1]
  unknown = [reading for reading in shaped if reading.why == "unknown"]
  if 2 * _elements(unknown) <= _elements(shaped):
    return
  key = tuple((reading.path, reading.shape) for reading in readings)
  if key in _warned:
    return
  _warned[key] = None
  while len(_warned) > _KEPT:
    _warned.popitem(last=False)
  share = _elements(unknown) / _elements(shaped)
  named = [_named(reading, reasons) for reading in unknown[:3]]
  names = f"{', '.join(named)}{' and others' if len(unknown) > 3 else ''}"
  warnings.warn(
    f"mbf_optax: {share:.0%} of the elements of arrays of two or more axes are trained"
    " one by one, as by Adam, since their"
    f" {'uses' if reasons else 'names and shapes'} do not say what they are: {names}."
    f" {_said(reasons) or f'Give the optimizer {_remedy(unknown, params, presets)}'}.",
    MostlyElementwise,
    stacklevel=_level_of_the_caller(),
  )


def _level_of_the_caller() -> int:
  """How many calls above the warning the user's own line is."""
  for level, frame in enumerate(traceback.walk_stack(sys._getframe(1)), start=1):
    package = frame[0].f_globals.get("__name__", "").partition(".")[0]
    if package not in _PASSED_THROUGH:
      return level
  return 2


def _named(reading: Reading, reasons: Mapping[str, str]) -> str:
  reason = reasons.get(reading.path)
  return repr(reading.path) + (f" ({reason})" if reason else "")


def _said(reasons: Mapping[str, str]) -> str:
  """What to do about arrays whose uses were traced."""
  return "Say what they are in traced_partition's overrides" if reasons else ""


def _remedy(
  unknown: Sequence[Reading],
  params: Any,
  presets: Mapping[str, Callable[[], Partition]],
) -> str:
  """The preset that knows most of them, if any knows half; the trace otherwise."""
  wanted = {reading.path for reading in unknown}
  best, most = "", _elements(unknown) / 2
  for name, preset in presets.items():
    read = [r for r in preset()(params) if r.path in wanted and not r.layer.elementwise]
    if _elements(read) > most:
      best, most = name, _elements(read)
  traced = "partition=traced_partition(loss, params, batch)"
  overrides = "say what they are in a partition's overrides"
  if best:
    return f"partition={best}(), which knows them, or {traced}"
  return f"{traced}, or {overrides}"


def _elements(readings: Sequence[Reading]) -> int:
  return sum(math.prod(reading.shape) for reading in readings)
