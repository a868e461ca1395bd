"""Checks of what a user passes in, each with a message that names it and the remedy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._tree import paths

_ROUNDED = (
  " optax.inject_hyperparams rounds hyperparameters to the parameters' dtype: where"
  " that is half precision, give it hyperparam_dtype=jnp.float32."
)


def _concrete(value: Any) -> bool:
  """Whether a hyperparameter's value is known; schedules and tracers are not."""
  return not callable(value) and not isinstance(value, jax.core.Tracer)


def _number(name: str, value: Any) -> np.ndarray:
  """A known value as an array of numbers, or a ``TypeError``."""
  refusal = TypeError(f"mbf_optax: {name} is {value!r}; it must be a number.")
  if value is None or isinstance(value, str):  # NumPy makes numbers of them
    raise refusal
  try:
    return np.asarray(value, float)
  except (TypeError, ValueError) as error:
    raise refusal from error


def is_zero(value: Any) -> bool:
  """Whether a hyperparameter is known to be zero."""
  return _concrete(value) and bool(np.all(np.asarray(value) == 0))


def positive(name: str, value: Any, usual: str) -> None:
  """Raises a ``ValueError`` for a known value that is not positive."""
  if _concrete(value) and not np.all(_number(name, value) > 0):
    raise ValueError(
      f"mbf_optax: {name} is {value}; it must be positive (try {usual})."
    )


def fraction(name: str, value: Any) -> None:
  """Raises a ``ValueError`` for a known value outside ``[0, 1]``."""
  if _concrete(value):
    array = _number(name, value)
    if not np.all((array >= 0) & (array <= 1)):
      raise ValueError(f"mbf_optax: {name} is {value}; it must be in [0, 1].")


def no_schedule(name: str, value: Any) -> None:
  """Raises a ``ValueError`` for a function where a number is needed."""
  if callable(value):
    raise ValueError(
      f"mbf_optax: {name} is a function; only the learning rate, the damping and"
      " the exponents can be schedules. optax.inject_hyperparams makes"
      " schedules of the others."
    )


def decay(name: str, value: Any) -> None:
  """Raises a ``ValueError`` for a schedule, or a known value outside ``[0, 1)``."""
  no_schedule(name, value)
  if _concrete(value):
    array = _number(name, value)
    if not np.all((array >= 0) & (array < 1)):
      why = _ROUNDED if np.all(array == 1) else ""
      raise ValueError(
        f"mbf_optax: {name} is {value}; it must be in [0, 1), 0.9 say.{why}"
      )


def period(name: str, value: Any) -> None:
  """Raises a ``ValueError`` for a schedule, or a known value that does not count."""
  no_schedule(name, value)
  if not _concrete(value):
    return
  array = _number(name, value)
  if not np.all(array >= 1) or not np.all(array == np.round(array)):
    raise ValueError(
      f"mbf_optax: {name} is {value}; it must be a whole number of updates, 1 or more."
    )


def count(name: str, value: Any) -> None:
  """Raises a ``ValueError`` for what is no whole number of at least one."""
  if not isinstance(value, int | np.integer) or value < 1:
    raise ValueError(
      f"mbf_optax: {name} is {value!r}; it must be a whole number, at least 1."
    )


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raises a ``ValueError`` for a value that is not among the choices."""
  if value not in choices:
    raise ValueError(
      f"mbf_optax: {name} is {value!r}; use one of {', '.join(map(repr, choices))}."
    )


def floating(name: str, dtype: Any) -> None:
  """Raises a ``ValueError`` for a dtype other than ``None`` or a real floating one."""
  if dtype is None:
    return
  refusal = ValueError(
    f"mbf_optax: {name} is {dtype}; use a floating dtype such as 'bfloat16', or None"
    " for that of the statistics."
  )
  try:
    is_floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
  except TypeError as error:
    raise refusal from error
  if not is_floating:
    raise refusal


def partition(value: Any) -> Any:
  """``value``, or a ``TypeError`` unless it reads parameter trees."""
  name = getattr(value, "__name__", "")
  if name.endswith("_partition"):
    raise TypeError(
      f"mbf_optax: partition is the function {name} itself; call it: {name}()."
    )
  if isinstance(value, tuple | list):
    raise TypeError(
      "mbf_optax: partition is the readings of some tree, not what reads one."
      " optax.inject_hyperparams calls every function that it is given; name this one"
      ' in static_args: optax.inject_hyperparams(mbf_adam, static_args=("partition",)).'
    )
  if not callable(value):
    raise TypeError(
      f"mbf_optax: partition is {value!r}; use flax_partition(), haiku_partition(),"
      " equinox_partition(), traced_partition(loss, params, batch), or None."
    )
  return value


def mask(value: Any) -> None:
  """Raises a ``TypeError`` for a mask that is the value of a function, not one."""
  if value is False or isinstance(value, jax.Array):
    raise TypeError(
      f"mbf_optax: mask is {value}, and nothing would decay; give a tree of booleans or"
      " a function from parameters to one. optax.inject_hyperparams calls every"
      " function that it is given; name this one in static_args:"
      ' optax.inject_hyperparams(mbf_adam, static_args=("mask",)).'
    )


def same_state_kind(state: Any, expected: type) -> None:
  """Raises a ``TypeError`` for a state that another transformation made."""
  if not isinstance(state, expected):
    raise TypeError(
      f"mbf_optax: update got a {type(state).__name__} where it needs the"
      f" {expected.__name__} that this transformation's init returned."
    )


def same_structure(updates: Any, momentum: Any) -> None:
  """Raises a ``ValueError`` where gradients differ from the parameters of ``init``."""
  given, expected = paths.flatten(updates), paths.flatten(momentum)
  for path in (*expected, *given):
    if path not in given or path not in expected:
      where = "parameters" if path in expected else "gradients"
      raise ValueError(
        f"mbf_optax: the gradients and the parameters given to init differ at {path!r},"
        f" which only the {where} have; initialise the optimizer with the tree that"
        " is differentiated."
      )
    if given[path].shape != expected[path].shape:
      raise ValueError(
        f"mbf_optax: the gradient of {path!r} has shape {given[path].shape}, the"
        f" parameter has {expected[path].shape}; make the state of the parameters"
        " that are differentiated, by tx.init(params)."
      )


def same_state(state: Any, expected: Any) -> None:
  """Raises a ``ValueError`` at the first entry of a state that is not as expected.

  Both are trees of whatever has a shape and a dtype; their containers may differ.
  """
  given, wanted = _entries(state), _entries(expected)
  for path in (*wanted, *given):
    has, should = given.get(path, "missing"), wanted.get(path, "absent")
    if has != should:
      raise ValueError(
        f"mbf_optax: the state's {path!r} is {has} but should be {should}. It was made"
        " with another partition, inverse_dtype, mu_dtype or chain, other parameters or"
        " another version of mbf_optax: restore it with those, or start anew from"
        " tx.init(params)."
      )


def _entries(state: Any) -> dict[str, str]:
  """Dtype and shape of every leaf by its path."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{jnp.dtype(leaf.dtype).name}{tuple(leaf.shape)}"
    )
    for path, leaf in pairs
  }


def curvature_leaves(curvature_gradients: Any, updates: Any) -> paths.Leaves:
  """Leaves of the second gradient for every leaf of the first.

  The second may hold more: inside ``optax.masked`` only the first is masked.
  """
  given = paths.flatten(curvature_gradients)
  for path, leaf in paths.flatten(updates).items():
    if path not in given or given[path].shape != leaf.shape:
      raise ValueError(
        f"mbf_optax: curvature_gradients has no leaf {path!r} of shape {leaf.shape};"
        " pass a second gradient of the same parameters."
      )
  return {path: given[path] for path in paths.flatten(updates)}
