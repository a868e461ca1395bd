"""What is trained: a model, its loss, and how held-out images are scored."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import optax


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Images to themselves: binary cross-entropy, summed over the pixels."""

  model: nn.Module
  title: ClassVar[str] = "autoencoder"
  score_name: ClassVar[str] = "held-out loss"
  loss_format: ClassVar[str] = "{:.2f}"
  score_format: ClassVar[str] = "{:.2f}"
  largest: ClassVar[int] = 16  # images larger than this are halved

  def loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean loss of images ``x``; the labels play no part."""
    del y
    if x.shape[1] > self.largest:
      x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    logits = self.model.apply(params, x)
    return optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2, 3)).mean()

  def init(self, key: jax.Array, x: jax.Array) -> Any:
    """Parameters for images like ``x``."""
    if x.shape[1] > self.largest:
      x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    return self.model.init(key, x)

  def score(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss itself."""
    return self.loss(params, x, y)


@dataclasses.dataclass(frozen=True)
class Classification:
  """Images to labels: cross-entropy."""

  model: nn.Module
  title: ClassVar[str] = "convnet"
  score_name: ClassVar[str] = "held-out accuracy"
  loss_format: ClassVar[str] = "{:.4f}"
  score_format: ClassVar[str] = "{:.1%}"

  def init(self, key: jax.Array, x: jax.Array) -> Any:
    """Parameters for images like ``x``."""
    return self.model.init(key, x)

  def loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean loss of images ``x`` with labels ``y``."""
    logits = self.model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  def score(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Share of images whose label has the largest logit."""
    return (self.model.apply(params, x).argmax(-1) == y).mean()
