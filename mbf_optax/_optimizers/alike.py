"""Computes layers of one shape together on CUDA, and layer by layer elsewhere.

A GPU takes longer to begin a kernel than a small layer needs in it. There layers that
differ in their names alone are stacked, which copies what they are computed from, and
go through one program. On several devices every layer is computed by itself, since
stacking would undo its sharding.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mbf_optax._estimators.estimator import Estimator
from mbf_optax._linalg.groups import may_join

MOST = 2**24
"""Parameters of the layers of a stack, so that it takes little memory.

A layer of more than half as many keeps a GPU busy by itself.
"""


def of_each(
  function: Callable[..., Any], estimators: Sequence[Estimator], *arguments: Sequence
) -> list[Any]:
  """``function(estimator, *its arguments)`` of every layer.

  Args:
    function: of a layer's estimator, whose path it does not use, and of trees of
      arrays; it gives a tree of arrays.
    estimators: of the layers.
    arguments: one entry a layer each.
  """
  stacks = _stacks(estimators, list(zip(*arguments, strict=True)))
  apart = functools.partial(_apart, function, estimators)
  if not may_join() or len(stacks) == len(estimators):
    return apart(*arguments)
  stacked = functools.partial(_stacked, function, estimators, stacks)
  return jax.lax.platform_dependent(*arguments, cuda=stacked, default=apart)


def _apart(
  function: Callable[..., Any], estimators: Sequence[Estimator], *arguments: Sequence
) -> list[Any]:
  return [function(*own) for own in zip(estimators, *arguments, strict=True)]


def _stacked(
  function: Callable[..., Any],
  estimators: Sequence[Estimator],
  stacks: Sequence[Sequence[int]],
  *arguments: Sequence,
) -> list[Any]:
  own, found = list(zip(*arguments, strict=True)), {}
  for members in stacks:
    of_first = functools.partial(function, estimators[members[0]])
    if len(members) == 1:
      found[members[0]] = of_first(*own[members[0]])
      continue
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(own[i] for i in members))
    results = jax.vmap(of_first)(*stack)
    for place, index in enumerate(members):
      found[index] = jax.tree.map(lambda leaf, place=place: leaf[place], results)
  return [found[index] for index in range(len(estimators))]


def _stacks(
  estimators: Sequence[Estimator], own: Sequence[tuple]
) -> list[tuple[int, ...]]:
  """Positions of layers that are alike, as many as a stack may hold."""
  alike: dict[Hashable, list[int]] = collections.defaultdict(list)
  for index, estimator in enumerate(estimators):
    kind = _kind(estimator, own[index]) if estimator.joins_alike else index
    alike[kind].append(index)
  stacks = []
  for indices in alike.values():
    most = max(1, MOST // max(1, estimators[indices[0]].reading.elements))
    count = -(-len(indices) // most)
    ends = [len(indices) * part // count for part in range(count + 1)]
    stacks += [tuple(indices[i:j]) for i, j in itertools.pairwise(ends)]
  return stacks


def _kind(estimator: Estimator, own: tuple) -> Hashable:
  """What layers that are alike have in common: a reading but for names, and types."""
  reading = estimator.reading
  has_bias = None if reading.bias_path is None else ""
  types = tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(own))
  return reading._replace(path="", bias_path=has_bias, why="asked"), types
