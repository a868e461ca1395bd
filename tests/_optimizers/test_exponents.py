"""Exponents of many layers at once, against one layer after the other."""

import jax.numpy as jnp
import numpy as np

from mbf_optax._estimators.estimator import INPUTS, OUTPUTS
from mbf_optax._optimizers.exponents import acting
from mbf_optax._optimizers.layers import Layers
from mbf_optax._partition.layer import Layer, read

LARGEST = {INPUTS: 0.75, OUTPUTS: 0.5}
LAYERS = Layers.of(
  [
    read("stack", (3, 4, 5), Layer((1,), "two_sided", stack_axes=(0,))),
    read("kernel", (3, 3, 2, 6), Layer((0, 1), "full")),
    read("dense", (4, 5), Layer((0,), "two_sided")),
  ]
)
AVERAGES = {
  "dense": jnp.float32(0.04),
  "stack": jnp.array([0.1, -0.3, 1.0]),
  "kernel": jnp.float32(0.0),
}


def expected(path, side):
  kappa = np.clip(np.asarray(AVERAGES[path], float), 0, 1)
  return LARGEST[side] * (1 - np.sqrt(kappa))


def test_every_layer_and_side_has_its_own():
  found = acting(LAYERS, LARGEST, AVERAGES)
  sides = [(e.reading.path, side) for e in LAYERS.estimators for side in e.sides]
  assert sides == [
    ("stack", INPUTS),
    ("stack", OUTPUTS),
    ("kernel", INPUTS),
    ("dense", INPUTS),
    ("dense", OUTPUTS),
  ]
  for (path, side), index in zip(sides, found.indices, strict=True):
    assert index.shape == np.shape(AVERAGES[path])
    np.testing.assert_allclose(found.values[index], expected(path, side), rtol=1e-5)
