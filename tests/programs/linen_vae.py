"""A variational autoencoder of dense layers.

After examples/vae of google/flax (Linen): one hidden layer on either side of the
latent code, the sum of cross-entropy and divergence, ``TrainState``, Adam at 1e-3 and
batches of 128. Smaller here: the layers, and scikit-learn's digits, binarised, for
MNIST's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.training import train_state
from sklearn.datasets import load_digits

BATCH, HIDDEN, LATENTS = 128, 100, 10


class Encoder(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(HIDDEN, name="fc1")(x))
    mean = nn.Dense(LATENTS, name="fc2_mean")(x)
    return mean, nn.Dense(LATENTS, name="fc2_logvar")(x)


class Decoder(nn.Module):
  pixels: int

  @nn.compact
  def __call__(self, z):
    z = nn.relu(nn.Dense(HIDDEN, name="fc1")(z))
    return nn.Dense(self.pixels, name="fc2")(z)


class VAE(nn.Module):
  pixels: int

  def setup(self):
    self.encoder = Encoder()
    self.decoder = Decoder(self.pixels)

  def __call__(self, x, key):
    mean, logvar = self.encoder(x)
    noise = jax.random.normal(key, logvar.shape)
    return self.decoder(mean + noise * jnp.exp(0.5 * logvar)), mean, logvar


def negative_elbo(logits, images, mean, logvar):
  """The mean over images of cross-entropy and divergence from the standard normal."""
  on, off = nn.log_sigmoid(logits), nn.log_sigmoid(-logits)
  cross_entropy = -(images * on + (1 - images) * off).sum(-1)
  divergence = -0.5 * (1 + logvar - mean**2 - jnp.exp(logvar)).sum(-1)
  return (cross_entropy + divergence).mean()


@jax.jit
def train_step(state, images, key):
  def loss_fn(params):
    logits, mean, logvar = state.apply_fn({"params": params}, images, key)
    return negative_elbo(logits, images, mean, logvar)

  loss, gradients = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=gradients), loss


def main(optimizer, steps):
  digits = load_digits().data
  images = (digits > digits.max() / 2).astype(np.float32)
  rng = np.random.default_rng(0)
  key, init_key = jax.random.split(jax.random.key(0))
  model = VAE(images.shape[1])
  params = model.init(init_key, images[:BATCH], key)["params"]
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=optimizer(1e-3)
  )
  losses = []
  for step in range(steps):
    batch = images[rng.choice(len(images), BATCH, replace=False)]
    state, loss = train_step(state, batch, jax.random.fold_in(key, step))
    losses.append(float(loss))
  return losses
