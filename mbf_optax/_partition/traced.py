"""The partition of any model: readings from how its loss uses every parameter."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mbf_optax._partition.layer import Partition, Reading, read
from mbf_optax._partition.overrides import Choices, Dense, Override
from mbf_optax._partition.plans import Plan, Planner
from mbf_optax._partition.uses import Recorder
from mbf_optax._partition.values import Source, Value
from mbf_optax._partition.views import of_parameter
from mbf_optax._partition.walk import Walk
from mbf_optax._tree import paths as tree

_KEPT = 16  # trees whose readings a partition remembers


@dataclasses.dataclass(frozen=True)
class TracedPartition:
  """Reads the parameters that a loss was traced with, and subtrees of them.

  Attributes:
    plans: how every parameter is read.
    unread: paths of arrays of several axes that are read element by element although
      nothing asks for it, each with the reason.
  """

  plans: tuple[Plan, ...]
  _by_path: dict[str, Plan] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )
  _seen: dict[Any, tuple[Reading, ...]] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def __post_init__(self) -> None:
    self._by_path.update((plan.path, plan) for plan in self.plans)

  @property
  def unread(self) -> tuple[tuple[str, str], ...]:
    return tuple((plan.path, plan.reason) for plan in self.plans if plan.reason)

  def __call__(self, params: Any) -> tuple[Reading, ...]:
    """The readings of the parameters that are there."""
    leaves = tree.flatten(params)
    key = tuple((path, tuple(leaf.shape)) for path, leaf in leaves.items())
    if key not in self._seen:
      readings = self._read(dict(key))
      while len(self._seen) >= _KEPT:
        self._seen.pop(next(iter(self._seen)), None)
      self._seen[key] = readings
    return self._seen[key]

  def _read(self, shapes: dict[str, tuple[int, ...]]) -> tuple[Reading, ...]:
    for path, shape in shapes.items():
      self._check(path, shape)
    readings, joined = [], set()
    for path, shape in shapes.items():
      plan = self._by_path[path]
      layer, bias = plan.layer, plan.bias
      if bias is not None and bias.path not in shapes:
        layer, bias = dataclasses.replace(layer, joins_bias=False), None
      reading = read(path, shape, layer, bias)._replace(why=plan.why)
      readings.append(reading)
      joined.add(reading.bias_path)
    return tuple(reading for reading in readings if reading.path not in joined)

  def _check(self, path: str, shape: tuple[int, ...]) -> None:
    if path not in self._by_path:
      known = ", ".join(map(repr, list(self._by_path)[:3]))
      raise ValueError(
        f"mbf_optax: the traced partition knows no parameter {path!r}, only {known} and"
        " so on; trace again with the parameters that the optimizer gets."
      )
    if shape != self._by_path[path].shape:
      raise ValueError(
        f"mbf_optax: the parameter {path!r} has shape {shape} and had"
        f" {self._by_path[path].shape} when the loss was traced; call traced_partition"
        " again with the new parameters."
      )


def traced_partition(
  loss: Callable[..., Any],
  params: Any,
  *args: Any,
  dense: Dense = "auto",
  rank: int = 16,
  full_limit: int = 32,
  block_limit: int = 1024,
  overrides: Sequence[Override] = (),
) -> Partition:
  """Mini-blocks of any model, from how its loss uses every parameter.

  The loss is traced, not run, and every parameter is followed through its equations:
  names, layouts and libraries do not matter. A product (``x @ w``, ``einsum``) says
  which axes of its weight are contracted: a mini-block spans them, the axes of a batch
  stack independent layers, and the others count blocks. So do the leading axes of what
  ``jax.lax.scan`` scans, and ``jax.vmap`` over parameters. A convolution has one block
  per kernel, over its spatial offsets (one per output channel under
  :func:`mbf_adam`), or is a dense layer over offsets and inputs
  where it has one offset, where its kernel equals its stride (a patch embedding) or
  where it has 196 offsets or more. What is added to a product, one element for every
  output, is its bias. Embeddings, norms, and all else that meets data element by
  element is read so.

  An array that is used in two ways, such as a tied embedding, or in none that is known,
  is read element by element as well; the attribute ``unread`` of the partition has
  their paths with the reasons.

  Args:
    loss: a function of the parameters and ``args``, with or without auxiliary outputs.
    params: the parameters, arrays or ``jax.ShapeDtypeStruct``.
    *args: what the loss takes beside them, likewise; close over what is no array.
    dense: see :func:`flax_partition`.
    rank: see :func:`flax_partition`.
    full_limit: see :func:`flax_partition`.
    block_limit: see :func:`flax_partition`.
    overrides: see :func:`flax_partition`; an estimator or ``"dense"`` for an array that
      is used in two ways takes the first product that it is used in.

  Returns:
    A function from a parameter tree, or a part of the one that was traced, to the
    readings of its layers.

  Raises:
    ValueError: here for bad arguments, as :func:`flax_partition`, and for an equation
      that could not be followed, naming it and the parameter; when the partition is
      applied, for a parameter that was not traced or had another shape.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> def loss(params, x, y):
    ...   for w, b in params:
    ...     x = jnp.tanh(x @ w + b)
    ...   return jnp.mean((x - y) ** 2)
    >>> params = [(jnp.ones((4, 8)), jnp.zeros(8)), (jnp.ones((8, 2)), jnp.zeros(2))]
    >>> x, y = jnp.ones(4), jnp.ones(2)
    >>> partition = mbf_optax.traced_partition(loss, params, x, y)
    >>> for reading in partition(params):
    ...   print(reading.path, reading.layer.block_axes, reading.blocks)
    0/0 (0,) 8
    1/0 (0,) 2
  """
  choices = Choices.checked(dense, rank, full_limit, block_limit, overrides)
  leaves = tree.flatten(params)
  for path, leaf in leaves.items():
    if not hasattr(leaf, "shape"):
      raise ValueError(
        f"mbf_optax.traced_partition: the parameter {path!r} is {leaf!r}, no array;"
        " give the arrays alone, eqx.filter(model, eqx.is_inexact_array) say."
      )
  choices.check_matches(leaves)
  planner = Planner.of(leaves, _uses(loss, params, args, leaves), choices)
  return TracedPartition(tuple(planner.plan(path) for path in leaves))


def _uses(
  loss: Callable[..., Any], params: Any, args: tuple[Any, ...], leaves: tree.Leaves
) -> Recorder:
  """All uses of the parameters in the loss."""
  jaxpr = jax.make_jaxpr(loss)(params, *args)
  inputs = []
  for path, leaf in leaves.items():
    shape = tuple(leaf.shape)
    views = (of_parameter(path, shape),) if shape and 0 not in shape else ()
    inputs.append(Value(Source.PARAMETERS, views, scalar=math.prod(shape) == 1))
  for var in jaxpr.jaxpr.invars[len(leaves) :]:
    inputs.append(Value(Source.DATA, scalar=math.prod(var.aval.shape) == 1))
  walk = Walk()
  walk.follow(jaxpr, inputs, _first_if_a_loss(jaxpr.out_avals))
  return walk.record


def _first_if_a_loss(outputs: Sequence[Any]) -> list[bool]:
  """Which outputs are differentiated: a scalar that comes first, or all of them."""
  is_loss = bool(outputs) and outputs[0].shape == ()
  return [not is_loss or i == 0 for i in range(len(outputs))]
