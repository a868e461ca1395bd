"""Generative models: a VAE, an autoencoder, a diffusion model, a normalizing flow."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mbf_optax
from benchmarks.models import Autoencoder
from benchmarks.swap import data
from benchmarks.swap.problem import Problem, drawn, squared_error

_LATENT = 8
_BREADTH = 0.03  # of the spiral: the deviation from its curve
_RING, _WIDTH = 8, 0.3  # Gaussians on a circle of radius 2, and their deviation


def vae() -> Problem:
  """A variational autoencoder of digits: minus the evidence bound of an image."""
  model, split = Vae(), data.digits()
  test = jnp.asarray(split.test[0].reshape(-1, 64))

  def bound(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    logits, mean, log_variance = model.apply({"params": params}, x, key)
    pixels = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
    divergence = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1) / 2
    return (pixels + divergence).mean()

  return Problem(
    "VAE",
    1e-3,
    "the example programs of PyTorch and Flax",
    steps=1000,
    init=lambda key: model.init(key, test[:1], key)["params"],
    loss=bound,
    batch=drawn(split.train[0].reshape(-1, 64), 128),
    held_out=lambda params: bound(params, test, jax.random.key(1)),
  )


def autoencoder() -> Problem:
  """A deep autoencoder of digits with six codes: squared error of a pixel."""
  split = data.digits()
  model = Autoencoder((128, 64, 32, 6, 32, 64, 128, 64))
  test = jnp.asarray(split.test[0].reshape(-1, 64))

  def error(params: Any, x: jax.Array) -> jax.Array:
    return squared_error(model.apply({"params": params}, x), x)

  return Problem(
    "autoencoder",
    1e-3,
    "Keras' and Adam's own default",
    steps=1000,
    init=lambda key: model.init(key, test[:1])["params"],
    loss=lambda params, batch, key: error(params, batch),
    batch=drawn(split.train[0].reshape(-1, 64), 128),
    held_out=lambda params: error(params, test),
  )


def diffusion() -> Problem:
  """Denoising score matching of a spiral in the plane, Equinox.

  Held out is the squared difference from the best prediction of the noise, which is
  known here and has a large error of its own.
  """
  rng = np.random.default_rng(0)
  points = _spiral(rng, 20_000)
  test = jnp.asarray(_spiral(rng, 2_000))
  static = eqx.partition(_denoiser(jax.random.key(0)), eqx.is_inexact_array)[1]

  def predicted(params: Any, noised: jax.Array, time: jax.Array) -> jax.Array:
    angles = jnp.pi * 2.0 ** jnp.arange(4)[None] * time
    inputs = jnp.concatenate([noised, jnp.sin(angles), jnp.cos(angles)], -1)
    return jax.vmap(eqx.combine(params, static))(inputs)

  def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    noised, time, noise = _noised(x, key)
    return squared_error(predicted(params, noised, time), noise)

  noised, time, _ = _noised(test, jax.random.key(1))
  best = _best_prediction(noised, time)

  return Problem(
    "score matching",
    1e-3,
    "usual for small diffusion models; 2e-4 is for large ones",
    steps=1000,
    init=lambda key: eqx.filter(_denoiser(key), eqx.is_inexact_array),
    loss=loss,
    batch=drawn(points, 256),
    held_out=lambda params: squared_error(predicted(params, noised, time), best),
    partition=mbf_optax.equinox_partition,
  )


def flow() -> Problem:
  """A flow of affine couplings on a ring of Gaussians.

  The loss is the mean log density of the data under the true distribution minus that
  under the flow, an estimate of their divergence: it is positive where the bare log
  likelihood need not be.
  """
  rng = np.random.default_rng(0)
  points = _ring(rng, 20_000)
  test = jnp.asarray(_ring(rng, 4_000))
  model = Flow()

  def divergence(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(_ring_density(x) - model.apply({"params": params}, x))

  return Problem(
    "normalizing flow",
    1e-3,
    "Dinh et al., 2017",
    steps=600,
    init=lambda key: model.init(key, test[:1])["params"],
    loss=lambda params, batch, key: divergence(params, batch),
    batch=drawn(points, 256),
    held_out=lambda params: divergence(params, test),
  )


class Vae(nn.Module):
  """One hidden layer of 256 on either side of eight latent numbers."""

  @nn.compact
  def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
    hidden = nn.relu(nn.Dense(256, name="encoder")(x))
    mean = nn.Dense(_LATENT, name="mean")(hidden)
    log_variance = nn.Dense(_LATENT, name="log_variance")(hidden)
    noise = jax.random.normal(key, mean.shape)
    hidden = nn.Dense(256, name="decoder")(mean + jnp.exp(log_variance / 2) * noise)
    return nn.Dense(64, name="pixels")(nn.relu(hidden)), mean, log_variance


class Flow(nn.Module):
  """The log density of points in the plane by six affine couplings."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fixed, moved = x[:, :1], x[:, 1:]
    log_volume = jnp.zeros_like(fixed)
    for _ in range(6):
      hidden = fixed
      for _ in range(2):
        hidden = nn.relu(nn.Dense(64)(hidden))
      shift, scale = jnp.split(nn.Dense(2)(hidden), 2, axis=-1)
      scale = jnp.tanh(scale)
      fixed, moved = moved * jnp.exp(scale) + shift, fixed
      log_volume = log_volume + scale
    square = fixed**2 + moved**2
    return (log_volume - square / 2 - jnp.log(2 * jnp.pi))[:, 0]


def _denoiser(key: jax.Array) -> eqx.nn.MLP:
  return eqx.nn.MLP(10, 2, 128, 3, activation=jax.nn.silu, key=key)


def _curve(place: np.ndarray) -> np.ndarray:
  """The spiral's points at places from 0 to 1."""
  angle = 1.5 * np.pi * (1 + 2 * place)
  return np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 8


def _spiral(rng: np.random.Generator, size: int) -> np.ndarray:
  points = _curve(rng.random(size)) + _BREADTH * rng.normal(size=(size, 2))
  return points.astype(np.float32)


def _noised(x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
  """Points with noise at times from [0, 1], the times and the noise."""
  key_time, key_noise = jax.random.split(key)
  time = jax.random.uniform(key_time, (len(x), 1))
  noise = jax.random.normal(key_noise, x.shape)
  return (
    jnp.cos(time * jnp.pi / 2) * x + jnp.sin(time * jnp.pi / 2) * noise,
    time,
    noise,
  )


def _best_prediction(noised: jax.Array, time: jax.Array) -> jax.Array:
  """The mean of the noise given the point with noise and the time."""
  signal, sigma = jnp.cos(time * jnp.pi / 2), jnp.sin(time * jnp.pi / 2)
  curve = jnp.asarray(_curve(np.linspace(0, 1, 2_000)), jnp.float32)
  away = noised[:, None] - signal[:, None] * curve[None]
  variance = (signal * _BREADTH) ** 2 + sigma**2
  weights = jax.nn.softmax(-jnp.sum(away**2, -1) / (2 * variance), axis=1)
  return sigma / variance * jnp.sum(weights[..., None] * away, 1)


def _centers() -> np.ndarray:
  angle = 2 * np.pi * np.arange(_RING) / _RING
  return 2 * np.stack([np.cos(angle), np.sin(angle)], 1)


def _ring(rng: np.random.Generator, size: int) -> np.ndarray:
  points = _centers()[rng.integers(_RING, size=size)]
  return (points + _WIDTH * rng.normal(size=(size, 2))).astype(np.float32)


def _ring_density(x: jax.Array) -> jax.Array:
  """The logarithm of the true density."""
  centers = jnp.asarray(_centers(), x.dtype)
  squares = jnp.sum((x[:, None] - centers[None]) ** 2, -1) / _WIDTH**2
  normalizer = np.log(2 * np.pi * _WIDTH**2 * _RING)
  return jax.nn.logsumexp(-squares / 2, axis=-1) - normalizer
