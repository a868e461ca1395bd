"""Haiku and Equinox models, initialised by those libraries, and their directions."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax

pytestmark = pytest.mark.promotes


def describe(reading):
  layer = reading.layer
  return (
    layer.estimator,
    layer.block_axes,
    layer.stack_axes,
    reading.bias_path is not None,
  )


def haiku_model(x):
  x = hk.Conv2D(4, 3, name="conv")(x)
  x = hk.LayerNorm(-1, True, True, name="norm")(x)
  x = hk.Conv2D(5, 1, name="pointwise")(x)
  x = hk.Linear(6, name="dense")(hk.Flatten()(x))
  return hk.Embed(7, 6, name="embed")(jnp.array([1])) + hk.GRU(6, name="gru")(x, x)[0]


def test_haiku():
  params = hk.transform(haiku_model).init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)))
  readings = {r.path: r for r in mbf_optax.haiku_partition()(params)}
  expected = {
    "conv/w": ("auto", (0, 1), (), False),
    "conv/b": ("inverse", (), (), False),
    "norm/scale": ("rms", (), (), False),
    "pointwise/w": ("auto", (0, 1, 2), (), True),
    "dense/w": ("auto", (0,), (), True),
    "embed/embeddings": ("rms", (), (), False),
    "gru/w_h": ("auto", (0,), (), False),
    "gru/b": ("rms", (), (), False),
  }
  assert {path: describe(readings[path]) for path in expected} == expected


class EquinoxModel(eqx.Module):
  conv: eqx.nn.Conv2d
  pointwise: eqx.nn.Conv2d
  layers: list
  norm: eqx.nn.LayerNorm
  embedding: eqx.nn.Embedding
  stacked: eqx.nn.Linear
  scale: float = 2.0

  def __init__(self, key):
    self.conv = eqx.nn.Conv2d(3, 4, 3, key=key)
    self.pointwise = eqx.nn.Conv2d(4, 5, 1, key=key)
    self.layers = [eqx.nn.Linear(5, 6, key=key), eqx.nn.Linear(6, 2, False, key=key)]
    self.norm = eqx.nn.LayerNorm(6)
    self.embedding = eqx.nn.Embedding(7, 3, key=key)
    keys = jax.random.split(key, 4)
    self.stacked = eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 2, key=k))(keys)


def test_equinox():
  params = eqx.filter(EquinoxModel(jax.random.key(0)), eqx.is_inexact_array)
  readings = {r.path: r for r in mbf_optax.equinox_partition()(params)}
  expected = {
    "conv/weight": ("auto", (2, 3), (), False),
    "conv/bias": ("inverse", (), (), False),
    "pointwise/weight": ("auto", (1, 2, 3), (), True),
    "layers/0/weight": ("auto", (1,), (), True),
    "layers/1/weight": ("auto", (1,), (), False),
    "norm/weight": ("rms", (), (), False),
    "norm/bias": ("rms", (), (), False),
    "embedding/weight": ("rms", (), (), False),
    "stacked/weight": ("auto", (2,), (0,), True),
  }
  assert {path: describe(readings[path]) for path in expected} == expected


@pytest.mark.slow
def test_layouts_give_the_same_directions():
  """A Flax tree and its Equinox transpose move alike."""
  rng = np.random.default_rng(0)
  dense, conv = rng.normal(size=(4, 3)), rng.normal(size=(3, 3, 2, 5))
  point, bias = rng.normal(size=(1, 1, 4, 3)), rng.normal(size=3)
  last = {
    "dense": {"kernel": dense, "bias": bias},
    "conv": {"kernel": conv},
    "point": {"kernel": point, "bias": bias},
  }
  first = {
    "dense": {"weight": dense.T, "bias": bias},
    "conv": {"weight": conv.transpose(3, 2, 0, 1)},
    "point": {"weight": point.transpose(3, 2, 0, 1), "bias": bias.reshape(3, 1, 1)},
  }

  def direction(params, partition):
    params = jax.tree.map(jnp.float32, params)
    tx = mbf_optax.scale_by_mbf(partition=partition)
    return tx.update(params, tx.init(params))[0]

  flax = direction(last, mbf_optax.flax_partition())
  equinox = direction(first, mbf_optax.equinox_partition())
  back = {
    "dense": {"kernel": equinox["dense"]["weight"].T, "bias": equinox["dense"]["bias"]},
    "conv": {"kernel": equinox["conv"]["weight"].transpose(2, 3, 1, 0)},
    "point": {
      "kernel": equinox["point"]["weight"].transpose(2, 3, 1, 0),
      "bias": equinox["point"]["bias"].reshape(3),
    },
  }
  for a, b in zip(jax.tree.leaves(flax), jax.tree.leaves(back), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
