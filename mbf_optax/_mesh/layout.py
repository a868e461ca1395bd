"""State lies where the parameters lie that it belongs to.

Without a mesh this module does nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mbf_optax._mesh.devices import sharding_of


def init(
  build: Callable[[Any], Any],
  layout: Callable[[Any, NamedSharding], Any],
  params: Any,
) -> Any:
  """``build(params)``, a state, laid out beside the parameters.

  No device ever holds more than its own part of the state.

  Args:
    build: makes the state.
    layout: from the state's shapes and a layout that divides nothing to the layout of
      every array of the state.
    params: the parameters.
  """
  known = [s for s in map(sharding_of, jax.tree.leaves(params)) if s is not None]
  if not known:
    return build(params)
  whole = NamedSharding(known[0].mesh, PartitionSpec())
  shardings = layout(jax.eval_shape(build, params), whole)
  if AxisType.Explicit in whole.mesh.axis_types:
    build = jax.sharding.auto_axes(build, out_sharding=shardings)
  return jax.jit(build, out_shardings=shardings)(params)


def update(step: Callable, updates: Any, state: Any, *others: Any) -> Any:
  """``step(updates, state, *others)``, its results laid out like updates and state.

  Within an explicit mesh the step itself runs under automatic sharding.
  """
  known = [s for s in map(sharding_of, jax.tree.leaves(updates)) if s is not None]
  if not known or AxisType.Explicit not in known[0].mesh.axis_types:
    return step(updates, state, *others)
  shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
  step = jax.sharding.auto_axes(step, out_sharding=shardings)
  return step(updates, state, *others)
