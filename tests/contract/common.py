"""The transformations under test, the trees they work on, and compiled steps of them.

A compiled step is shared by every test that can use it: compiling takes far longer than
running.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax


def grafted(
  learning_rate,
  damping,
  momentum,
  curvature_ema,
  curvature_update_period,
  inverse_update_period,
  partition=None,
):
  """The combinator by itself: MBF's direction at the length of momentum."""
  direction = mbf_optax.scale_by_mbf(
    damping=damping,
    momentum=momentum,
    curvature_ema=curvature_ema,
    curvature_update_period=curvature_update_period,
    inverse_update_period=inverse_update_period,
    partition=partition,
  )
  return optax.chain(
    mbf_optax.graft(direction, optax.trace(0.9), partition),
    optax.scale_by_learning_rate(learning_rate),
  )


PERIODS = {"curvature_update_period": 1, "inverse_update_period": 2}
FACTORIES = {
  "mbf": mbf_optax.mbf,
  "mbf_adam": mbf_optax.mbf_adam,
  "scale_by_mbf": mbf_optax.scale_by_mbf,
  "graft": grafted,
}
HYPERPARAMETERS = {
  "mbf": {
    "learning_rate": 0.1,
    "damping": 0.3,
    "momentum": 0.8,
    "curvature_ema": 0.7,
    "weight_decay": 0.01,
    **PERIODS,
  },
  "mbf_adam": {
    "learning_rate": 0.1,
    "damping": 0.1,
    "b1": 0.8,
    "b2": 0.99,
    "eps": 1e-7,
    "eps_root": 1e-9,
    "exponent": 0.9,
    "output_exponent": 0.4,
    "curvature_ema": 0.7,
    "weight_decay": 0.01,
    **PERIODS,
  },
  "scale_by_mbf": {"damping": 0.3, "momentum": 0.8, "curvature_ema": 0.7, **PERIODS},
  "graft": {
    "learning_rate": 0.1,
    "damping": 0.3,
    "momentum": 0.8,
    "curvature_ema": 0.7,
    **PERIODS,
  },
}
NAMES = list(FACTORIES)

# mbf goes through the one, mbf_adam does by itself what the other composes.
_SELDOM = ("scale_by_mbf", "graft")
each_transformation = pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name in _SELDOM else name
    for name in NAMES
  ],
)
MOMENTUM = {"mbf_adam": "b1"}  # what the momentum is called, if not that

SHAPES = {
  "dense": {"kernel": (3, 5), "bias": (5,)},
  "norm": {"scale": (3,)},
}


def make(name, **changes):
  """The transformation of that name, with some hyperparameters replaced."""
  return FACTORIES[name](**{**HYPERPARAMETERS[name], **changes})


STATES = mbf_optax.MbfState | mbf_optax.MbfAdamState


def is_ours(node):
  return isinstance(node, STATES)


def our_states(state):
  """The states of this library's optimizers within a state."""
  return list(filter(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))


def our_state(state):
  """The only one of them."""
  (found,) = our_states(state)
  return found


def others(state):
  """The state with nothing in their place."""
  return jax.tree.map(lambda n: None if is_ours(n) else n, state, is_leaf=is_ours)


def moments(state):
  """Trees like the parameters that a state of ours holds."""
  if isinstance(state, mbf_optax.MbfState):
    return [state.momentum]
  return [state.adam.mu, state.adam.nu]


def is_shape(node):
  return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def random_tree(seed, shapes=SHAPES, dtype=jnp.float32):
  """Normally distributed leaves of the given shapes."""
  rng = np.random.default_rng(seed)

  def leaf(shape):
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
      values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(values, dtype)

  return jax.tree.map(leaf, shapes, is_leaf=is_shape)


PARAMS = random_tree(0)
GRADIENTS = [random_tree(seed) for seed in range(1, 6)]


class Counted:
  """A jitted function that counts how often it was traced."""

  def __init__(self, function, **options):
    self.traces = 0

    @functools.wraps(function)
    def traced(*args, **kwargs):
      self.traces += 1
      return function(*args, **kwargs)

    self.call = jax.jit(traced, **options)

  def __call__(self, *args, **kwargs):
    return self.call(*args, **kwargs)


@functools.cache
def compiled(name):
  """The transformation and its jitted update."""
  tx = make(name)
  return tx, Counted(tx.update)


@functools.cache
def traced(name):
  """A jitted update whose changed hyperparameters are an argument."""

  def update(gradients, state, params, changes):
    return make(name, **changes).update(gradients, state, params)

  return Counted(update)


def run(tx, update, gradients=GRADIENTS, params=PARAMS):
  """Updates and states of the steps along the given gradients."""
  state, steps = tx.init(params), []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    steps.append((updates, state))
  return steps
