"""One network in every library, trained from the same weights, moves the same way.

The network is written out in plain jax over nested dictionaries; each library's own
model, loop and preset has to arrive at the same losses and parameters.
"""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import meta

import mbf_optax

pytestmark = pytest.mark.promotes

STEPS, EPSILON = 6, 1e-5
SHAPES = {
  "conv": {"kernel": (3, 3, 1, 6), "bias": (6,)},
  "hidden": {"kernel": (6, 5), "bias": (5,)},
  "norm": {"scale": (5,), "bias": (5,)},
  "logits": {"kernel": (5, 3), "bias": (3,)},
}
ESTIMATORS = {  # "inverse" is the bias of the convolution
  "conv": {"auto", "inverse"},
  "hidden": {"shared"},
  "norm": {"rms"},
  "logits": {"full"},
}
PRESET = {
  "full_limit": 4,
  "rank": 3,
  "overrides": [("logits", "full"), ("hidden", "shared")],
}
PERIODS = {"curvature_update_period": 1, "inverse_update_period": 2}
OPTIMIZERS = {
  "mbf": functools.partial(mbf_optax.mbf, 0.1, damping=0.3, **PERIODS),
  "mbf_adam": functools.partial(mbf_optax.mbf_adam, 0.03, **PERIODS),
}
each_optimizer = pytest.mark.parametrize(
  "name", [pytest.param("mbf", marks=pytest.mark.slow), "mbf_adam"]
)

_RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
  lambda shape: jnp.asarray(_RNG.normal(size=shape), jnp.float32),
  SHAPES,
  is_leaf=lambda node: isinstance(node, tuple),
)
IMAGES = jnp.asarray(_RNG.normal(size=(STEPS, 16, 5, 5, 1)), jnp.float32)
LABELS = (jnp.mean(IMAGES[:, :, 1:4, 1:4, 0], (2, 3)) > 0).astype(jnp.int32)


def cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def convolution(x, layer):
  numbers = ("NHWC", "HWIO", "NHWC")
  x = jax.lax.conv_general_dilated(
    x, layer["kernel"], (1, 1), "SAME", dimension_numbers=numbers
  )
  return x + layer["bias"]


def dense(x, layer):
  return x @ layer["kernel"] + layer["bias"]


def normalize(x, layer):
  x = x - x.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
  return x * scale * layer["scale"] + layer["bias"]


def network(params, x):
  x = jnp.tanh(convolution(x, params["conv"])).mean((1, 2))
  x = normalize(jnp.tanh(dense(x, params["hidden"])), params["norm"])
  return dense(x, params["logits"])


def train(tx, params, apply):
  """The losses and the last parameters of a loop over any pytree of arrays."""

  @jax.jit
  def step(params, state, x, y):
    loss, gradients = jax.value_and_grad(lambda p: cross_entropy(apply(p, x), y))(
      params
    )
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, losses = tx.init(params), []
  for x, y in zip(IMAGES, LABELS, strict=True):
    params, state, loss = step(params, state, x, y)
    losses.append(loss)
  return losses, params


@functools.cache
def reference(name):
  """Of the plain network over nested dictionaries."""
  tx = OPTIMIZERS[name](partition=mbf_optax.flax_partition(**PRESET))
  return train(tx, PARAMS, network)


def check_readings(partition, params):
  """Each layer of the network is read as ``ESTIMATORS`` says."""
  found = {module: set() for module in ESTIMATORS}
  for reading in partition(params):
    (module,) = [key for key in reading.path.split("/") if key in ESTIMATORS]
    found[module].add(reading.layer.estimator)
  assert found == ESTIMATORS


def check(name, losses, params):
  """The losses, and parameters in the form of ``PARAMS``, are the plain network's."""
  expected_losses, expected = reference(name)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    params,
    expected,
  )


@each_optimizer
def test_plain_dictionaries(name):
  check_readings(mbf_optax.flax_partition(**PRESET), PARAMS)
  losses, _ = reference(name)
  assert np.isfinite(losses).all()
  assert np.mean(losses[-2:]) < 0.7 * losses[0]


# Flax Linen.


class Linen(nn.Module):
  boxed: bool = False
  rematerialised: bool = False

  @nn.compact
  def __call__(self, x):
    lift = nn.remat if self.rematerialised else lambda module: module
    conv, dense = {}, {}
    if self.boxed:
      init = nn.initializers.ones
      conv = {"kernel_init": nn.with_partitioning(init, (None, None, None, "model"))}
      dense = {"kernel_init": nn.with_logical_partitioning(init, ("embed", "mlp"))}
    x = jnp.tanh(lift(nn.Conv)(6, (3, 3), name="conv", **conv)(x)).mean((1, 2))
    x = jnp.tanh(lift(nn.Dense)(5, name="hidden", **dense)(x))
    x = nn.LayerNorm(EPSILON, use_fast_variance=False, name="norm")(x)
    return nn.Dense(3, name="logits")(x)


def linen_params(model):
  """The network's weights in the tree, and in the boxes, that the model makes."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[0])
  return meta.replace_boxed(shapes, {"params": PARAMS})


@each_optimizer
@pytest.mark.parametrize("variant", ["plain", "boxed", "rematerialised"])
def test_linen(name, variant):
  model = Linen(**({} if variant == "plain" else {variant: True}))
  params = linen_params(model)
  if variant == "boxed":
    assert isinstance(params["params"]["conv"]["kernel"], nn.Partitioned)
    assert isinstance(params["params"]["hidden"]["kernel"], nn.LogicallyPartitioned)
  partition = mbf_optax.flax_partition(**PRESET)
  check_readings(partition, params)
  losses, params = train(OPTIMIZERS[name](partition=partition), params, model.apply)
  check(name, losses, meta.unbox(params)["params"])


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    y = nn.LayerNorm(EPSILON, use_fast_variance=False, name="norm")(x)
    for name in ("full", "shared", "low_rank"):
      y = jnp.tanh(nn.Dense(4, name=name)(y))
    return x + y, None


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    lifted = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=2,
    )
    return lifted(name="blocks")(x.reshape(len(x), -1)[:, :4], None)[0]


def unrolled(params, x):
  x = x.reshape(len(x), -1)[:, :4]
  for block in params:
    y = normalize(x, block["norm"])
    for name in ("full", "shared", "low_rank"):
      y = jnp.tanh(dense(y, block[name]))
    x = x + y
  return x


@each_optimizer
def test_scanned_linen_layers_move_as_unrolled_ones(name):
  """Whatever the estimator, a layer of the stack knows nothing of the others."""
  overrides = [("shared", "shared"), ("low_rank", "full")]
  tx = OPTIMIZERS[name](partition=mbf_optax.flax_partition(rank=3, overrides=overrides))
  shapes = jax.eval_shape(Scanned().init, jax.random.key(0), IMAGES[0])
  rng = np.random.default_rng(1)
  stacked = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
  )
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(2)]
  losses, params = train(tx, stacked, Scanned().apply)
  layers = [layer["params"]["blocks"] for layer in layers]
  expected_losses, expected = train(tx, layers, unrolled)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
  jax.tree.map(
    lambda both, *each: np.testing.assert_allclose(both, each, rtol=1e-3, atol=1e-4),
    params["params"]["blocks"],
    *expected,
  )


# Flax NNX.


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
    self.hidden = nnx.Linear(6, 5, rngs=rngs)
    self.norm = nnx.LayerNorm(5, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
    self.logits = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    x = jnp.tanh(self.conv(x)).mean((1, 2))
    return self.logits(self.norm(jnp.tanh(self.hidden(x))))


def nnx_model():
  model = Nnx(nnx.Rngs(0))
  state = nnx.state(model, nnx.Param)
  nnx.replace_by_pure_dict(state, PARAMS)
  nnx.update(model, state)
  return model


@each_optimizer
def test_nnx_optimizer(name):
  model, partition = nnx_model(), mbf_optax.flax_partition(**PRESET)
  check_readings(partition, nnx.state(model, nnx.Param))
  tx = OPTIMIZERS[name](partition=partition)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(x), y))(model)
    optimizer.update(model, gradients)
    return loss

  batches = zip(IMAGES, LABELS, strict=True)
  losses = [step(model, optimizer, x, y) for x, y in batches]
  check(name, losses, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@each_optimizer
def test_raw_nnx_state(name):
  definition, params = nnx.split(nnx_model(), nnx.Param)
  tx = OPTIMIZERS[name](partition=mbf_optax.flax_partition(**PRESET))
  losses, params = train(tx, params, lambda p, x: nnx.merge(definition, p)(x))
  check(name, losses, nnx.to_pure_dict(params))


# Haiku.


def haiku_network(x):
  x = jnp.tanh(hk.Conv2D(6, 3, name="conv")(x)).mean((1, 2))
  x = jnp.tanh(hk.Linear(5, name="hidden")(x))
  x = hk.LayerNorm(-1, True, True, eps=EPSILON, name="norm")(x)
  return hk.Linear(3, name="logits")(x)


HAIKU_NAMES = {"kernel": "w", "bias": "b", "scale": "scale"}


def renamed(params, names, norm_bias):
  """The tree with other names for the leaves."""
  return {
    module: {
      norm_bias if (module, leaf) == ("norm", "bias") else names[leaf]: value
      for leaf, value in leaves.items()
    }
    for module, leaves in params.items()
  }


@each_optimizer
def test_haiku(name):
  model = hk.without_apply_rng(hk.transform(haiku_network))
  params = renamed(PARAMS, HAIKU_NAMES, "offset")
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[0])
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  partition = mbf_optax.haiku_partition(**PRESET)
  check_readings(partition, params)
  losses, params = train(OPTIMIZERS[name](partition=partition), params, model.apply)
  back = {"w": "kernel", "b": "bias", "scale": "scale", "offset": "bias"}
  check(name, losses, renamed(params, back, None))


# Equinox.


class Equinox(eqx.Module):
  conv: eqx.nn.Conv2d
  hidden: eqx.nn.Linear
  norm: eqx.nn.LayerNorm
  logits: eqx.nn.Linear

  def __init__(self, key):
    self.conv = eqx.nn.Conv2d(1, 6, 3, padding=1, key=key)
    self.hidden = eqx.nn.Linear(6, 5, key=key)
    self.norm = eqx.nn.LayerNorm(5, eps=EPSILON)
    self.logits = eqx.nn.Linear(5, 3, key=key)

  def __call__(self, x):  # one image
    x = jnp.tanh(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2))
    return self.logits(self.norm(jnp.tanh(self.hidden(x))))


def equinox_leaves(model):
  return [
    *(model.conv.weight, model.conv.bias, model.hidden.weight, model.hidden.bias),
    *(model.norm.weight, model.norm.bias, model.logits.weight, model.logits.bias),
  ]


def equinox_model():
  conv, hidden, norm, logits = (PARAMS[m] for m in ("conv", "hidden", "norm", "logits"))
  return eqx.tree_at(
    equinox_leaves,
    Equinox(jax.random.key(0)),
    [
      *(conv["kernel"].transpose(3, 2, 0, 1), conv["bias"].reshape(6, 1, 1)),
      *(hidden["kernel"].T, hidden["bias"], norm["scale"], norm["bias"]),
      *(logits["kernel"].T, logits["bias"]),
    ],
  )


def from_equinox(model):
  return {
    "conv": {
      "kernel": model.conv.weight.transpose(2, 3, 1, 0),
      "bias": model.conv.bias.reshape(6),
    },
    "hidden": {"kernel": model.hidden.weight.T, "bias": model.hidden.bias},
    "norm": {"scale": model.norm.weight, "bias": model.norm.bias},
    "logits": {"kernel": model.logits.weight.T, "bias": model.logits.bias},
  }


@each_optimizer
def test_equinox(name):
  model, partition = equinox_model(), mbf_optax.equinox_partition(**PRESET)
  check_readings(partition, eqx.filter(model, eqx.is_inexact_array))
  tx = OPTIMIZERS[name](partition=partition)

  @eqx.filter_jit
  def step(model, state, x, y):
    @eqx.filter_value_and_grad
    def objective(model):
      return cross_entropy(jax.vmap(model)(x), y)

    loss, gradients = objective(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = tx.update(gradients, state, params)
    return eqx.apply_updates(model, updates), state, loss

  state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []
  for x, y in zip(IMAGES, LABELS, strict=True):
    model, state, loss = step(model, state, x, y)
    losses.append(loss)
  check(name, losses, from_equinox(model))
