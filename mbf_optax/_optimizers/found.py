"""Finding the states of this library's optimizers in any chain or wrapper."""

from collections.abc import Callable
from typing import Any

import jax

from mbf_optax._optimizers.adam_state import MbfAdamState
from mbf_optax._optimizers.fisher import MbfState


def plain(state: Any) -> tuple[Any, Callable[[Any], Any]]:
  """A state without the variables that hold its arrays, and the way back.

  ``nnx.Optimizer`` keeps every array of a state in a variable of its own.
  """

  def is_variable(node: Any) -> bool:
    return hasattr(node, "get_value")

  structure = jax.tree.structure(state)
  bare = jax.tree.map(
    lambda node: node.get_value() if is_variable(node) else node,
    state,
    is_leaf=is_variable,
  )
  return bare, lambda new: jax.tree.unflatten(structure, jax.tree.leaves(new))


def is_state(node: Any) -> bool:
  """Whether a node is a state of one of the optimizers."""
  return isinstance(node, MbfState | MbfAdamState)


def find_states(caller: str, state: Any) -> list[MbfState | MbfAdamState]:
  """All of them in ``state``, or a ``ValueError`` in the caller's name."""
  states = list(filter(is_state, jax.tree.leaves(state, is_leaf=is_state)))
  if not states:
    raise ValueError(
      f"{caller}: there is no MbfState or MbfAdamState in the given state; pass the"
      " state that tx.init or tx.update returned, of a tx that contains mbf or"
      " mbf_adam."
    )
  return states
