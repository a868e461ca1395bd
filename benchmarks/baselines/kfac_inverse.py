"""Damped inverses of Kronecker products, three readings of one damping."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.baselines import common, lapack
from benchmarks.baselines.kfac_capture import Factors

Split = Literal["equal", "trace", "none"]


class Spectrum(NamedTuple):
  """An inverse by eigenvectors.

  Attributes:
    inputs: ``(n_in, n_in)``, eigenvectors of ``A`` in columns.
    outputs: ``(n_out, n_out)``, eigenvectors of ``G`` in columns.
    scale: ``(n_in, n_out)``, the inverse's eigenvalues.
  """

  inputs: jax.Array
  outputs: jax.Array
  scale: jax.Array


Inverse = Factors | Spectrum


def identity(factors: Factors, split: Split) -> Inverse:
  """The inverse to start with, for factors of these shapes."""
  eyes = Factors(*(jnp.eye(len(f), dtype=f.dtype) for f in factors))
  if split != "none":
    return eyes
  scale = jnp.ones((len(factors.inputs), len(factors.outputs)), factors.inputs.dtype)
  return Spectrum(*eyes, scale)


def invert(
  factors: dict[str, Factors],
  previous: dict[str, Inverse],
  damping: jax.typing.ArrayLike,
  split: Split,
) -> dict[str, Inverse]:
  """New inverses of every layer; a layer whose own is not finite keeps its last."""
  if split == "none":
    new = {path: _spectrum(pair, damping) for path, pair in factors.items()}
  else:
    damped = {path: _damped(pair, damping, split) for path, pair in factors.items()}
    new = jax.tree.map(lapack.inverse, damped)
  return {path: _keep_finite(new[path], previous[path]) for path in factors}


def multiply(inverse: Inverse, matrix: jax.Array) -> jax.Array:
  """The inverse's product with an ``(n_in, n_out)`` matrix."""
  if isinstance(inverse, Factors):
    return _sandwich(inverse.inputs, matrix, inverse.outputs)
  rotated = _sandwich(inverse.inputs.T, matrix, inverse.outputs)
  return _sandwich(inverse.inputs, rotated * inverse.scale, inverse.outputs.T)


def _damped(factors: Factors, damping: jax.typing.ArrayLike, split: Split) -> Factors:
  """Both factors with their share of the damping."""
  inputs, outputs = factors
  root = jnp.sqrt(jnp.asarray(damping, inputs.dtype))
  if split == "equal":
    return Factors(common.damped(inputs, root), common.damped(outputs, root))
  tiny = jnp.finfo(inputs.dtype).tiny
  ratio = (_mean_diagonal(inputs) + tiny) / (_mean_diagonal(outputs) + tiny)
  pi = jnp.sqrt(ratio)
  return Factors(common.damped(inputs, pi * root), common.damped(outputs, root / pi))


def _mean_diagonal(matrix: jax.Array) -> jax.Array:
  return jnp.trace(matrix) / len(matrix)


def _spectrum(factors: Factors, damping: jax.typing.ArrayLike) -> Spectrum:
  """Eigenvectors of the product, and its eigenvalues with the whole damping."""
  (inputs, left), (outputs, right) = map(lapack.eigh, factors)
  values = jnp.outer(jnp.maximum(inputs, 0), jnp.maximum(outputs, 0))
  return Spectrum(left, right, 1 / (values + jnp.asarray(damping, values.dtype)))


def _keep_finite(new: Inverse, old: Inverse) -> Inverse:
  finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in new]).all()
  return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def _sandwich(left: jax.Array, matrix: jax.Array, right: jax.Array) -> jax.Array:
  matrix = jnp.matmul(left, matrix, precision=common.HIGHEST)
  return jnp.matmul(matrix, right, precision=common.HIGHEST)
