"""The two networks that the examples train."""

import flax.linen as nn
import jax


class Autoencoder(nn.Module):
  """Dense layers down to a narrow code and back; returns logits of the pixels.

  Attributes:
    widths: widths of the hidden layers; the narrowest is the code and is linear.
  """

  widths: tuple[int, ...] = (128, 64, 16, 64, 128)

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits in the shape of ``images``."""
    x = images.reshape(len(images), -1)
    pixels = x.shape[1]
    for width in self.widths:
      x = nn.Dense(width)(x)
      x = x if width == min(self.widths) else nn.relu(x)
    return nn.Dense(pixels)(x).reshape(images.shape)


class Convnet(nn.Module):
  """Two strided 3 x 3 convolutions and two dense layers; returns logits of classes.

  Attributes:
    classes: number of classes.
    channels: output channels of the convolutions.
    width: width of the hidden dense layer.
  """

  classes: int = 10
  channels: tuple[int, ...] = (16, 32)
  width: int = 64

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits ``(n, classes)`` of images ``(n, height, width, channels)``."""
    x = images
    for channels in self.channels:
      x = nn.relu(nn.Conv(channels, (3, 3), strides=2)(x))
    window = (x.shape[1] // 2, x.shape[2] // 2)  # leaves 2 x 2 positions
    x = nn.avg_pool(x, window, strides=window)
    x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
    return nn.Dense(self.classes)(x)
