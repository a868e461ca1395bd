"""Statistics and updates are computed in float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp


def wide_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """float32 for narrower floating dtypes, ``dtype`` itself for all others."""
  return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def as_float(array: jax.Array) -> jax.Array:
  """``array`` in float32, or in its own dtype where that is wider."""
  return array.astype(wide_dtype(array.dtype))


def is_complex(leaf: Any) -> bool:
  """Whether an array, or its shape, is of complex numbers."""
  return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
