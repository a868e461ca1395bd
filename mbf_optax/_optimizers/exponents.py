"""The exponent that acts on a layer's matrices, for all layers in one array.

Numbers of single layers would each be a program of their own, and a deep network has
hundreds.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mbf_optax._linalg.batches import Exponents
from mbf_optax._mesh import devices
from mbf_optax._optimizers.layers import Layers
from mbf_optax._optimizers.persistence import kappa_of
from mbf_optax._tree.shapes import Array, Float

Averages = dict[str, Float[Array, "..."]]
"""Of the foretold share, ``(*stack,)`` by layer."""


def acting(
  layers: Layers,
  largest: Mapping[str, jax.typing.ArrayLike],
  averages: Averages,
) -> Exponents:
  """Exponents ``largest (1 - sqrt(kappa))`` of every layer's matrices.

  Args:
    layers: with matrices, at least one.
    largest: by side, what acts where nothing persists.
    averages: of the foretold share, by layer.
  """
  of_layers = [averages[estimator.reading.path] for estimator in layers.estimators]
  dtype = jnp.result_type(*of_layers)
  joined = jnp.concatenate([r.astype(dtype).reshape(-1) for r in of_layers])
  # A root's derivative at zero is infinite.
  share = 1 - jnp.sqrt(jnp.maximum(kappa_of(joined), jnp.finfo(dtype).tiny))
  values = [devices.replicated(value, dtype) * share for value in largest.values()]
  starts = {side: i * len(joined) for i, side in enumerate(largest)}
  indices, behind = [], 0
  for estimator, r in zip(layers.estimators, of_layers, strict=True):
    own = np.arange(behind, behind + r.size).reshape(r.shape)
    indices += [np.asarray(starts[side] + own) for side in estimator.sides]
    behind += r.size
  return Exponents(jnp.concatenate(values), indices)
