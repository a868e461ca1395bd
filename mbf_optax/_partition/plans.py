"""From the uses of every parameter to how it is read."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from mbf_optax._partition.layer import (
  ELEMENTWISE,
  Bias,
  Layer,
  Reading,
  Why,
  bias_order,
)
from mbf_optax._partition.overrides import (
  Choices,
  refusal_of_blocks,
  refusal_of_kind,
)
from mbf_optax._partition.uses import Addition, Record, Recorder, Use
from mbf_optax._tree.dtypes import is_complex
from mbf_optax._tree.paths import Leaves


class Plan(NamedTuple):
  """How a parameter is read.

  Attributes:
    path: the parameter.
    shape: its shape.
    layer: how it is read as a layer of its own.
    bias: what joins its blocks, where the tree has it.
    reason: why an array of several axes is read element by element although its use
      does not say so, or ``""``.
    asked: whether an override says so.
  """

  path: str
  shape: tuple[int, ...]
  layer: Layer
  bias: Bias | None = None
  reason: str = ""
  asked: bool = False

  @property
  def why(self) -> Why:
    """Who says how it is read."""
    if self.asked:
      return "asked"
    return "unknown" if self.reason else "recognised"


@dataclasses.dataclass(frozen=True)
class Planner:
  """Decides how parameters are read.

  Attributes:
    leaves: the parameters.
    choices: what the user asked for.
    uses: of every parameter, one for each way.
    additions: the one product that a bias is added to, by its path.
    first_bias: of a weight, by its path.
    stacks: axes that stack layers though the products with them do not say so.
    lost: an equation through which a parameter was not followed.
  """

  leaves: Leaves
  choices: Choices
  uses: Mapping[str, list[Record]]
  additions: Mapping[str, Addition]
  first_bias: Mapping[str, str]
  stacks: Set[tuple[str, int]]
  lost: Mapping[str, str]

  @classmethod
  def of(cls, leaves: Leaves, record: Recorder, choices: Choices) -> "Planner":
    """A planner of the parameters whose uses were recorded."""
    uses = _ways(record)
    additions = _biases(record.additions, uses)
    first: dict[str, str] = {}
    for path, addition in sorted(additions.items(), key=lambda item: item[1].step):
      first.setdefault(addition.weight, path)
    return cls(leaves, choices, uses, additions, first, record.stacks, record.lost)

  def plan(self, path: str) -> Plan:
    """How the parameter at ``path`` is read.

    Raises:
      ValueError: for an override that its array does not allow.
    """
    leaf, addition = self.leaves[path], self.additions.get(path)
    asked = self.choices.asked(path, None if addition is None else addition.weight)
    shape, elementwise = tuple(leaf.shape), Layer(estimator="rms")
    plan = Plan(path, shape, elementwise, asked=asked is not None)
    if isinstance(asked, Layer):
      if is_complex(leaf) and not asked.elementwise:
        raise refusal_of_blocks(path)
      return plan._replace(layer=asked, bias=self._bias(plan._replace(layer=asked)))
    if asked is None and addition is not None:
      return plan._replace(layer=self._bias_layer(path, addition))
    if asked in ELEMENTWISE or is_complex(leaf) or leaf.size == 0:
      return plan
    use, reason = self._use(plan, asked)
    if use is None:
      return plan._replace(reason=reason)
    plan = plan._replace(layer=self._blocks(plan, use, asked))
    bias = self._bias(plan)
    if bias is None or bias_order(_alone(plan), bias) is None:
      return plan._replace(layer=dataclasses.replace(plan.layer, joins_bias=False))
    return plan._replace(bias=bias)

  def _use(self, plan: Plan, asked: str | None) -> tuple[Use | None, str]:
    """The use that says how to read an array; or none, and why if that is unclear."""
    records = self.uses.get(plan.path, [])
    products = [r.use for r in records if r.use.inputs or r.use.spatial]
    if len(plan.shape) < 2 or asked is None:
      blocks, reason = _one_way(records, self.lost.get(plan.path))
      if len(plan.shape) < 2:
        blocks, reason = None, ""
    else:
      blocks, reason = products[0] if products else None, ""
    if blocks is None and asked == "dense" and len(plan.shape) > 1:
      blocks = Use("product", tuple(range(len(plan.shape) - 1)))
    lacking = blocks is None or (asked == "conv" and not blocks.spatial)
    if asked in ("conv", "dense") and lacking:
      raise refusal_of_kind(plan.path, plan.shape, asked)
    return blocks, reason

  def _blocks(self, plan: Plan, use: Use, asked: str | None) -> Layer:
    alike = {axis for path, axis in self.stacks if path == plan.path}
    stack = tuple(sorted(alike - {*use.inputs, *use.spatial} | {*use.stack}))
    if asked == "conv" or (use.kind == "convolution" and asked != "dense"):
      return self.choices.convolution(use.spatial, use.inputs, stack, plan.shape, asked)
    axes = use.inputs
    if use.kind != "upsampling":
      axes = tuple(sorted(use.inputs + use.spatial))
    return self.choices.neurons(axes, stack, plan.shape, asked)

  def _bias(self, plan: Plan) -> Bias | None:
    """What may join the blocks: real, and with no override of its own."""
    path = self.first_bias.get(plan.path)
    if path is None or not plan.layer.joins_bias or plan.layer.elementwise:
      return None
    leaf = self.leaves[path]
    if is_complex(leaf) or self.choices.asked(path, plan.path) is not None:
      return None
    axes = [axis for _, axis in self.additions[path].axes]
    reading = _alone(plan)
    rest = [axis for axis in reading.batch_axes if axis not in axes]
    return Bias(path, tuple(leaf.shape), (*axes, *rest))

  def _bias_layer(self, path: str, addition: Addition) -> Layer:
    """Of a bias that stands alone."""
    weight = self.plan(addition.weight)
    joins = weight.bias is not None
    if weight.layer.elementwise or joins or is_complex(self.leaves[path]):
      return Layer(estimator="rms")
    stack = _alone(weight).layer.stack_axes
    axes = tuple(ours for ours, theirs in addition.axes if theirs in stack)
    return Layer(estimator="inverse", stack_axes=axes)


def _ways(record: Recorder) -> dict[str, list[Record]]:
  """One record for every way in which a parameter is used.

  Products of parameters alone count for those that have no other use.
  """
  kept = [r for number, r in record.uses.items() if number not in record.withdrawn]
  ways: dict[str, dict[Use, Record]] = collections.defaultdict(dict)
  with_data = {r.path for r in kept if r.with_data}
  for one in kept:
    if one.with_data or one.path not in with_data:
      ways[one.path].setdefault(one.use, one)
  return {path: list(records.values()) for path, records in ways.items()}


def _biases(
  additions: Iterable[Addition], uses: Mapping[str, list[Record]]
) -> dict[str, Addition]:
  """The additions of parameters that are added to one product and used nowhere else."""
  found: dict[str, dict[tuple, Addition]] = collections.defaultdict(dict)
  for addition in additions:
    found[addition.path].setdefault(addition[:3], addition)
  return {
    path: next(iter(ways.values()))
    for path, ways in found.items()
    if len(ways) == 1 and path not in uses
  }


def _one_way(records: list[Record], lost: str | None) -> tuple[Use | None, str]:
  """The only use; or none, and why."""
  if not records:
    if lost is None:
      return None, "the loss does not use it"
    return None, f"it could not be followed through {lost}"
  if len(records) > 1:
    first, second, *_ = records
    return None, f"it is used in two ways, {first.equation} and {second.equation}"
  (record,) = records
  if record.use.kind == "divided":
    return None, f"one of its axes has two roles in {record.equation}"
  return (None if record.use.kind == "elementwise" else record.use), ""


def _alone(plan: Plan) -> Reading:
  """The array without a bias, its axes non-negative."""
  ndim = len(plan.shape)
  block, stack = (
    tuple(sorted(axis % ndim for axis in axes))
    for axes in (plan.layer.block_axes, plan.layer.stack_axes)
  )
  layer = dataclasses.replace(plan.layer, block_axes=block, stack_axes=stack)
  return Reading(plan.path, None, plan.shape, layer)
