"""Updates that nobody has compiled.

Called outside of ``jax.jit``, every operation of an update is a program of its own, and
every branch of it is compiled again in every step: seconds a step where Adam's takes
milliseconds. So an update that is called with arrays that lie on no mesh compiles
itself as a whole, once for each transformation and each tree of shapes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from mbf_optax._mesh.devices import sharding_of
from mbf_optax._optimizers.state import as_arrays


def compiled_when_eager(update: Callable) -> Callable:
  """An update that compiles itself where no trace does.

  Args:
    update: of a transformation, which takes ``curvature_gradients`` and ``warm_start``
      and has no use for parameters or for any other argument.

  Returns:
    The same update; it is given arrays where numbers of Python or NumPy were passed. On
    a mesh it runs as it is: what is known of a layout is known from
    concrete arrays.
  """
  compiled = jax.jit(update)

  @functools.wraps(update)
  def called(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    curvature_gradients: Any = None,
    warm_start: Any = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    del params, extra_args
    updates, second = as_arrays(updates), as_arrays(curvature_gradients)
    given = {"curvature_gradients": second, "warm_start": warm_start}
    is_plain = all(map(_is_plain, jax.tree.leaves((updates, state, given))))
    return (compiled if is_plain else update)(updates, state, **given)

  return called


def _is_plain(leaf: Any) -> bool:
  """Whether a leaf is an array, and lies on no mesh."""
  is_concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
  return is_concrete and sharding_of(leaf) is None
