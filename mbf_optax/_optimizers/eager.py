"""Updates that nobody has compiled.

Called outside of ``jax.jit``, every operation of an update is a program of its own, and
every branch of it is compiled again in every step: seconds a step where Adam's takes
milliseconds. So an update that is called with arrays that lie on no mesh compiles
itself as a whole, once for each tree of shapes. Hyperparameters that are arrays are
inputs of the program: ``optax.inject_hyperparams`` makes a new transformation of new
ones at every step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mbf_optax._mesh.devices import sharding_of
from mbf_optax._optimizers.state import as_arrays


class _Recipe(NamedTuple):
  """A method but for its hyperparameters that are arrays, ready to be compared."""

  kind: Callable[..., Any]
  settings: tuple[tuple[str, Any], ...]


class _Itself(NamedTuple):
  """A setting that has no hash, equal to nothing but itself."""

  setting: Any

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Itself) and self.setting is other.setting

  def __hash__(self) -> int:
    return id(self.setting)


def compiled_when_eager(method: Any) -> Callable:
  """The update of a method, which compiles itself where no trace does.

  Args:
    method: a dataclass of hyperparameters, whose ``update`` takes
      ``curvature_gradients`` and ``warm_start`` and has no use for parameters or for
      any other argument.

  Returns:
    The same update; it is given arrays where numbers of Python or NumPy were passed. On
    a mesh it runs as it is: what is known of a layout is known from
    concrete arrays.
  """
  recipe, arrays = _divided(method)

  @functools.wraps(method.update)
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
    updates, state = as_arrays(updates), as_arrays(state)
    second = as_arrays(curvature_gradients)
    given = {"curvature_gradients": second, "warm_start": warm_start}
    if all(map(_is_plain, jax.tree.leaves((arrays, updates, state, given)))):
      return _compiled(recipe, arrays, updates, state, given)
    return method.update(updates, state, **given)

  return called


@functools.partial(jax.jit, static_argnums=0)
def _compiled(
  recipe: _Recipe,
  arrays: Mapping[str, jax.Array],
  updates: Any,
  state: Any,
  given: Mapping[str, Any],
) -> tuple[Any, Any]:
  settings = {
    name: value.setting if isinstance(value, _Itself) else value
    for name, value in recipe.settings
  }
  return recipe.kind(**settings, **arrays).update(updates, state, **given)


def _divided(method: Any) -> tuple[_Recipe, dict[str, jax.Array]]:
  """What a method is compiled for, and the hyperparameters that its program takes."""
  fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
  arrays = {n: value for n, value in fields.items() if isinstance(value, jax.Array)}
  settings = ((n, _hashable(v)) for n, v in fields.items() if n not in arrays)
  return _Recipe(type(method), tuple(settings)), arrays


def _hashable(setting: Any) -> Any:
  try:
    hash(setting)
  except TypeError:
    return _Itself(setting)
  return setting


def _is_plain(leaf: Any) -> bool:
  """Whether a leaf is an array, and lies on no mesh."""
  is_concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
  return is_concrete and sharding_of(leaf) is None
