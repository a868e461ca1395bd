"""Following parameters into calls, branches and loops."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mbf_optax._partition import views
from mbf_optax._partition.uses import Recorder
from mbf_optax._partition.values import Source, Value, computed, source_of

Body = Callable[[list[Value]], list[Value]]


def nested(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """A call of a jaxpr (``jit``, ``checkpoint``, ``custom_vjp``); else nothing known."""
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    jaxpr = equation.params.get(name)
    if jaxpr is not None and _fits(jaxpr, equation):
      return walk.follow(jaxpr, values, walk.wanted)
  for value in values:
    for view in value.views:
      walk.lose(view, equation)
  source = source_of(values)
  return [computed(source, tuple(var.aval.shape)) for var in equation.outvars]


def _fits(jaxpr: Any, equation: Any) -> bool:
  """Whether the operands are the jaxpr's own; shards of a mesh have other shapes."""
  inner = _open(jaxpr)
  pairs = [(inner.invars, equation.invars), (inner.outvars, equation.outvars)]
  return all(
    [v.aval.shape for v in ours] == [v.aval.shape for v in theirs]
    for ours, theirs in pairs
  )


def _open(jaxpr: Any) -> Any:
  """A jaxpr without the constants that are closed over, if it comes with them."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def _scan(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """The leading axis of what is scanned stacks independent layers."""
  constants, carried = _constants_and_carried(equation)
  fixed, carry = values[:constants], values[constants : constants + carried]
  scanned = [
    value.changed(views.take_leading)._replace(outputs=(), origins=())
    for value in values[constants + carried :]
  ]

  def body(inside: list[Value]) -> list[Value]:
    return walk.follow(equation.params["jaxpr"], [*fixed, *inside, *scanned])

  outputs = _loop(walk, equation, body, carry)
  stacked = [
    value._replace(views=(), outputs=(), origins=()) for value in outputs[carried:]
  ]
  return outputs[:carried] + stacked


def _constants_and_carried(equation: Any) -> tuple[int, int]:
  """How many inputs of a scan are constant, and how many carried.

  What it scans or stacks has one axis more outside of it than inside. The parameters of
  the equation say so too, under names that change from release to release.
  """
  jaxpr = _open(equation.params["jaxpr"])

  def as_inside(inner: Sequence[Any], outer: Sequence[Any]) -> int:
    pairs = zip(inner, outer, strict=True)
    return sum(a.aval.ndim == b.aval.ndim for a, b in pairs)

  carried = as_inside(jaxpr.outvars, equation.outvars)
  return as_inside(jaxpr.invars, equation.invars) - carried, carried


def _while(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  tested = equation.params["cond_nconsts"]
  constants = tested + equation.params["body_nconsts"]
  fixed, carry = values[tested:constants], values[constants:]
  body = functools.partial(_call, walk, equation.params["body_jaxpr"], fixed)
  return _loop(walk, equation, body, carry)


def _call(
  walk: Any, jaxpr: Any, fixed: list[Value], inside: list[Value]
) -> list[Value]:
  return walk.follow(jaxpr, [*fixed, *inside])


def _loop(walk: Any, equation: Any, body: Body, carry: Sequence[Value]) -> list[Value]:
  """The outputs of a body whose first outputs go back in as its first inputs.

  A parameter is carried as long as it comes out as it went in, up to what was added to
  it; anything else that is carried is data.
  """
  carry = [
    value._replace(outputs=(), origins=(), scalar=False)
    if value.views
    else Value(Source.DATA, scalar=value.scalar)
    for value in carry
  ]
  outer = walk.record
  while True:
    walk.record = Recorder()
    outputs = body(carry)
    kept = [
      _carried(before, after) for before, after in zip(carry, outputs, strict=False)
    ]
    seen, walk.record = walk.record, outer
    if kept == carry:
      outer.merge(seen)
      return kept + outputs[len(carry) :]
    for before, after in zip(carry, kept, strict=True):
      for view in set(before.views) - set(after.views):
        walk.lose(view, equation)
    carry = kept


def _carried(before: Value, after: Value) -> Value:
  remaining = {_without_events(view) for view in after.views}
  kept = tuple(v for v in before.views if _without_events(v) in remaining)
  source = before.source if kept == before.views else Source.DATA
  return Value(
    max(source, after.source if kept else Source.DATA),
    kept,
    scalar=before.scalar and after.scalar,
  )


def _without_events(view: views.View) -> views.View:
  return view._replace(events=())


def _cond(walk: Any, equation: Any, values: list[Value]) -> list[Value]:
  """What all branches agree on."""
  wanted = walk.wanted
  branches = [walk.follow(b, values[1:], wanted) for b in equation.params["branches"]]
  return [_agreed(outputs) for outputs in zip(*branches, strict=True)]


def _agreed(outputs: Sequence[Value]) -> Value:
  first, *rest = outputs
  return Value(
    source_of(outputs),
    tuple(v for v in first.views if all(v in other.views for other in rest)),
    tuple(v for v in first.outputs if all(v in other.outputs for other in rest)),
    tuple(v for v in first.origins if all(v in other.origins for other in rest)),
    scalar=all(value.scalar for value in outputs),
    indicator=all(value.indicator for value in outputs),
  )


RULES = {"scan": _scan, "while": _while, "cond": _cond}
