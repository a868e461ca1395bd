"""nanoGPT's network: pre-norm, no biases, the readout tied to the embedding."""

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYERS, HEADS, WIDTH, CONTEXT = 4, 4, 128, 64
_STD = 0.02  # of the weights at the start


class GPT(nn.Module):
  """Logits ``(batch, length, vocabulary)`` of tokens ``(batch, length)``."""

  vocabulary: int
  layers: int = LAYERS

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    init = nn.initializers.normal(_STD)
    embed = nn.Embed(self.vocabulary, WIDTH, embedding_init=init)
    position = self.param("position_embedding", init, (CONTEXT, WIDTH))
    x = embed(tokens) + position[None, : tokens.shape[1]]
    for _ in range(self.layers):
      x = Block(self.layers)(x)
    return embed.attend(nn.LayerNorm(use_bias=False)(x))


class Block(nn.Module):
  """Attention and two dense layers, each beside the residual stream.

  Attributes:
    layers: how many blocks the network has.
  """

  layers: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(_STD)
    # nanoGPT: what is added to the residual stream starts smaller in deeper networks.
    into = nn.initializers.normal(_STD / (2 * self.layers) ** 0.5)
    y = nn.LayerNorm(use_bias=False)(x)
    x = x + nn.MultiHeadDotProductAttention(
      HEADS, use_bias=False, kernel_init=init, out_kernel_init=into
    )(y, mask=nn.make_causal_mask(x[..., 0]))
    y = nn.Dense(4 * WIDTH, use_bias=False, kernel_init=init)(
      nn.LayerNorm(use_bias=False)(x)
    )
    y = jax.nn.gelu(y, approximate=False)
    return x + nn.Dense(WIDTH, use_bias=False, kernel_init=into)(y)


def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean cross-entropy in nats a character."""
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
  return -jnp.mean(chosen)
