"""The ways to invert the matrices of a group."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mbf_optax._linalg import triangles
from mbf_optax._linalg.cholesky import by_cholesky
from mbf_optax._linalg.groups import Group, may_join
from mbf_optax._linalg.sweep import pad, padded_order, spd_inverse
from mbf_optax._mesh import devices
from mbf_optax._tree.shapes import Array, Float

Method = Literal["sweep", "linalg"]
"""Plain XLA operations (on CUDA Cholesky factors), or ``jnp.linalg.inv``."""


def invert(
  group: Group, values: list[Float[Array, "..."]], method: Method
) -> list[Float[Array, "..."]]:
  """Inverses of a group's matrices, not finite where there is none."""
  if group.is_packed:
    function = _PACKED[method, group.as_factor]
    return [function(v) for v in values] if method == "linalg" else function(values)
  return [_invert_matrices(v, method) for v in values]


def _invert_matrices(
  matrices: Float[Array, "*batch n n"], method: Method
) -> Float[Array, "*batch n n"]:
  if method == "linalg":
    return jnp.linalg.inv(devices.whole(matrices))
  if not may_join():
    return spd_inverse(matrices)  # a library call would gather what a mesh divides
  return jax.lax.platform_dependent(matrices, cuda=by_cholesky, default=_padded_sweep)


def _padded_sweep(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  n = matrices.shape[-1]
  return spd_inverse(pad(matrices, padded_order(n)))[..., :n, :n]


def _linalg_inverse(values: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
  matrices = jnp.moveaxis(triangles.unpack(values), (0, 1), (-2, -1))
  return triangles.pack(jnp.moveaxis(jnp.linalg.inv(matrices), (-2, -1), (0, 1)))


def _linalg_factor(values: Float[Array, "t *batch"]) -> Float[Array, "t *batch"]:
  matrices = jnp.moveaxis(triangles.unpack(values), (0, 1), (-2, -1))
  factors = jnp.linalg.inv(jnp.linalg.cholesky(matrices))
  # A packed triangle is read as the upper one, and the factor is lower triangular.
  return triangles.pack(jnp.moveaxis(factors, (-2, -1), (1, 0)))


_PACKED: dict[tuple[Method, bool], Callable[[Any], Any]] = {
  ("sweep", False): triangles.inverse,
  ("sweep", True): triangles.inverse_factor,
  ("linalg", False): _linalg_inverse,
  ("linalg", True): _linalg_factor,
}
"""By method, and whether the inverse's factor is wanted."""
