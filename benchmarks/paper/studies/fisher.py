"""Empirical Fisher matrices of single layers, and where the weight of a matrix lies."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.baselines import common
from benchmarks.paper.studies.networks import SimpleCnn

Rows = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""From parameters, inputs and labels to ``(examples, n)``, a gradient each."""


class Share(NamedTuple):
  """The part of a matrix that lies in the diagonal blocks of a partition.

  Attributes:
    entries: share of the matrix's entries that the blocks are.
    absolute: share of the sum of absolute values.
    squared: share of the squared Frobenius norm.
    off_entries: share of the off-diagonal entries that the blocks hold.
    off_absolute: share of the sum of the off-diagonal entries' absolute values.
    off_squared: share of the sum of their squares.
  """

  entries: float
  absolute: float
  squared: float
  off_entries: float
  off_absolute: float
  off_squared: float

  @property
  def contrast(self) -> float:
    """Mean absolute off-diagonal entry inside the blocks over that outside of them."""
    inside = self.off_absolute / self.off_entries
    return inside * (1 - self.off_entries) / (1 - self.off_absolute)


def share(matrix: np.ndarray, groups: np.ndarray) -> Share:
  """How much of ``matrix`` lies in the blocks that share a label.

  Args:
    matrix: ``(n, n)``.
    groups: ``(n,)`` labels, not all different.
  """
  inside = groups[:, None] == groups[None]
  beside = inside & ~np.eye(len(matrix), dtype=bool)
  size = np.abs(matrix)
  diagonal = np.diagonal(size)
  off = size.sum() - diagonal.sum()
  off_squared = (size**2).sum() - (diagonal**2).sum()
  return Share(
    entries=inside.mean(),
    absolute=size[inside].sum() / size.sum(),
    squared=(size[inside] ** 2).sum() / (size**2).sum(),
    off_entries=beside.sum() / (inside.size - len(matrix)),
    off_absolute=size[beside].sum() / off,
    off_squared=(size[beside] ** 2).sum() / off_squared,
  )


def empirical_fisher(
  rows: Rows, params: Any, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> np.ndarray:
  """The mean of ``g g^T`` over all examples of the batches, in float64."""
  total, count = 0.0, 0
  for x, y in batches:
    gradients = np.asarray(rows(params, x, y), np.float64)
    total, count = total + gradients.T @ gradients, count + len(gradients)
  return total / count


def damped_inverse(fisher: np.ndarray, damping: float) -> np.ndarray:
  """``(F + damping * mean diagonal * I)^(-1)``."""
  level = damping * np.trace(fisher) / len(fisher)
  return np.linalg.inv(fisher + level * np.eye(len(fisher)))


def dense_rows(model: Any, layer: str) -> Rows:
  """Gradients of a dense layer, neuron by neuron, each neuron's bias last."""

  @jax.jit
  def rows(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    def loss(own: Any, x: jax.Array, y: jax.Array) -> jax.Array:
      logits = model.apply({"params": {**params, layer: own}}, x[None])
      return _cross_entropy(logits, y[None])

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params[layer], x, y)
    leaves = common.flatten(gradients)
    by_neuron = [leaves["kernel"].swapaxes(1, 2)]
    if "bias" in leaves:
      by_neuron.append(leaves["bias"][..., None])
    return jnp.concatenate(by_neuron, axis=-1).reshape(len(x), -1)

  return rows


def convolution_rows(
  model: SimpleCnn, layer: int, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Rows:
  """Gradients of some of a convolution's 5x5 kernels, kernel by kernel.

  Kernels come in the order (output, input) channel. The gradient is the product of the
  patches of the inputs with the derivatives of the outputs, as in backpropagation.
  """
  channels = jnp.array(inputs), jnp.array(outputs)

  def rows(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return _kernel_gradients(model, layer, params, x, y, *channels)

  return rows


@functools.partial(jax.jit, static_argnames=("model", "layer"))
def _kernel_gradients(
  model: SimpleCnn,
  layer: int,
  params: Any,
  x: jax.Array,
  y: jax.Array,
  inputs: jax.Array,
  outputs: jax.Array,
) -> jax.Array:
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)["perturbations"]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def loss(perturbations: Any) -> tuple[jax.Array, Any]:
    variables = {"params": params, "perturbations": perturbations}
    logits, kept = model.apply(variables, x, mutable="intermediates")
    return _cross_entropy(logits, y) * len(x), kept["intermediates"]

  derivatives, kept = jax.grad(loss, has_aux=True)(zeros)
  signals = derivatives[f"output_{layer}"][..., outputs]
  images = kept[f"input_{layer}"][0][..., inputs]
  patches = jax.lax.conv_general_dilated_patches(
    images, (5, 5), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  gradients = jnp.einsum("nhwo,nhwp->nop", signals, patches)
  return gradients.reshape(len(x), -1)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
