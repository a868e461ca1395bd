"""What both optimizers do to make a state, and to check one that they are given."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mbf_optax._mesh.devices import sharding_of
from mbf_optax._optimizers.layers import Layers, States
from mbf_optax._partition.layer import Reading
from mbf_optax._tree import checks, paths
from mbf_optax._tree.dtypes import wide_dtype

_LOGGER = logging.getLogger("mbf_optax")


def log(readings: Sequence[Reading]) -> None:
  """Tells what every layer became, at level ``INFO``."""
  for reading in readings:
    _LOGGER.info("%s", reading.describe())


def as_arrays(tree: Any) -> Any:
  """Python and NumPy numbers as arrays; arrays and shapes stay as they are."""
  return jax.tree.map(_as_array, tree)


def _as_array(leaf: Any) -> Any:
  is_number = isinstance(leaf, float | complex) or type(leaf).__module__ == "numpy"
  return jnp.asarray(leaf) if is_number else leaf


def zeros(params: Any) -> Any:
  """Zeros in the shapes of the parameters, float32 or wider."""
  return jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), params)


def by_layer(entries: dict[str, Any], leaves: paths.Leaves) -> Any:
  """Entries by layer, or one number in their place for a tree without leaves.

  ``optax.tree.map_params`` makes the state of a placeholder without leaves and maps the
  real one by it: whatever is no tree like the parameters has to be a leaf there.
  """
  return entries if leaves else jnp.zeros(())


def beside(params: Any, whole: NamedSharding) -> Any:
  """The layout of a tree like the parameters."""
  return jax.tree.map(lambda p: sharding_of(p) or whole, params)


def layers_beside(
  layers: Layers, states: States, params: Any, whole: NamedSharding
) -> States:
  """The layout of the layers' states."""
  leaves = paths.flatten(params)
  return layers.shardings(states, lambda path: sharding_of(leaves[path]) or whole)


def same_layers(layers: Layers, states: Any, moments: Any) -> None:
  """Raises a ``ValueError`` unless the states are those of these layers."""
  expected = jax.eval_shape(layers.init, paths.flatten(moments))
  checks.same_state({"curvature": states}, {"curvature": expected})
