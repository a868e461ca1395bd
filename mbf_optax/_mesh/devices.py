"""What is known of a mesh of devices while a program is traced.

Shardings are known from concrete arrays and, while tracing, from the types of explicit
sharding. Under automatic sharding a trace knows nothing, and XLA follows the layout of
the state that it is given. Without a mesh every function here returns its argument.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharding_of(array: Any) -> NamedSharding | None:
  """How an array is laid out over a mesh; ``None`` if it is not, or if not known."""
  if isinstance(array, jax.core.Tracer):
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
  sharding = getattr(array, "sharding", None)
  return sharding if isinstance(sharding, NamedSharding) else None


def replicated(value: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike) -> jax.Array:
  """A hyperparameter as an array of ``dtype`` that every device holds.

  An array that was made under an explicit mesh cannot enter a step that runs under
  automatic sharding before it is resharded into it.
  """
  if isinstance(value, jax.Array) and _under_automatic_mesh() and sharding_of(value):
    mesh = jax.sharding.get_abstract_mesh()
    value = jax.sharding.reshard(value, NamedSharding(mesh, PartitionSpec()))
  return jnp.asarray(value, dtype)


def whole(matrices: jax.Array) -> jax.Array:
  """Has every device hold whole matrices ``(..., n, m)``, as far as a mesh is known.

  A product whose left factor is divided by rows then moves the right factor, never the
  left one, however large either is.
  """
  if not _under_automatic_mesh():
    return matrices
  free = [PartitionSpec.UNCONSTRAINED] * (matrices.ndim - 2)
  return jax.lax.with_sharding_constraint(matrices, PartitionSpec(*free, None, None))


def may_be_divided() -> bool:
  """Whether a mesh of several devices is known, so that arrays may be divided."""
  return _under_automatic_mesh() and jax.sharding.get_abstract_mesh().size > 1


def _under_automatic_mesh() -> bool:
  """Whether a mesh is known whose axes XLA divides arrays over."""
  return AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types
