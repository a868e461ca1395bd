"""A small classifier with two dense layers, and its loss on random data."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

EXAMPLES = 6
SHAPES = {
  "Dense_0": {"kernel": (3, 4), "bias": (4,)},
  "Dense_1": {"kernel": (4, 2), "bias": (2,)},
}


class Perceptron(nn.Module):
  """Three inputs, four hidden units, two classes."""

  last_bias: bool = True

  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(nn.Dense(4)(x))
    return nn.Dense(2, use_bias=self.last_bias)(x)


def loss(model, params, x, labels):
  """Mean cross-entropy."""
  logits = model.apply({"params": params}, x)
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def problem(shapes=SHAPES):
  """Parameters of the given shapes, inputs and labels."""
  rng = np.random.default_rng(0)
  params = {
    layer: {name: jnp.float32(rng.normal(size=shape)) for name, shape in leaves.items()}
    for layer, leaves in shapes.items()
  }
  x = jnp.float32(rng.normal(size=(EXAMPLES, 3)))
  return params, x, jnp.int32(rng.integers(0, 2, size=EXAMPLES))
