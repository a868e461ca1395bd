"""``mbf`` and ``mbf_adam``: every argument arrives, and Adam's calls mean the same.

The arguments are those of ``inspect.signature``, so that one that is dropped, or added
without a thought, goes red.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax
from mbf_optax._optimizers import aliases
from tests.contract.common import random_tree

SHAPES = {"conv": {"kernel": (2, 2, 1, 5), "bias": (5,)}, "Dense": {"kernel": (3, 5)}}
PARAMS = random_tree(0, SHAPES)
GRADIENTS = [random_tree(seed, SHAPES) for seed in range(1, 5)]
PARTITION = mbf_optax.flax_partition("shared")


def mask(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# None of them is a default.
SHARED = {
  "learning_rate": 0.3,
  "damping": 0.7,
  "curvature_ema": 0.4,
  "curvature_update_period": 2,
  "inverse_update_period": 3,
  "weight_decay": 0.2,
  "mask": mask,
  "partition": PARTITION,
  "inverse": "linalg",
  "inverse_dtype": "bfloat16",
  "precision": "default",
}
ARGUMENTS = {
  "mbf": {**SHARED, "momentum": 0.3},
  "mbf_adam": {
    **SHARED,
    "b1": 0.3,
    "b2": 0.6,
    "eps": 0.01,
    "eps_root": 0.02,
    "mu_dtype": "bfloat16",
    "nesterov": True,
    "exponent": 0.9,
    "output_exponent": 0.8,
  },
}
ALIASES = {"mbf": mbf_optax.mbf, "mbf_adam": mbf_optax.mbf_adam}
SCALINGS = {"mbf": mbf_optax.scale_by_mbf, "mbf_adam": mbf_optax.scale_by_mbf_adam}
# What a scaling has and its alias leaves alone.
OWN = {"mbf": {"relative_damping"}, "mbf_adam": set()}
each_name = pytest.mark.parametrize("name", ALIASES)


def parameters(function):
  return inspect.signature(function).parameters


@each_name
def test_arguments_of_this_file_are_all_of_them_and_no_defaults(name):
  given = ARGUMENTS[name]
  assert parameters(ALIASES[name]).keys() == given.keys()
  for argument, parameter in parameters(ALIASES[name]).items():
    assert parameter.default is inspect.Parameter.empty or (
      parameter.default != given[argument]
    ), argument


@each_name
def test_an_alias_has_all_arguments_of_its_scaling_and_their_defaults(name):
  own, scaling = parameters(ALIASES[name]), parameters(SCALINGS[name])
  others = {"learning_rate", "weight_decay", "mask"}
  assert own.keys() - others == scaling.keys() - OWN[name]
  for argument in own.keys() - others:
    assert own[argument].default == scaling[argument].default, argument


@pytest.mark.mistyped
@each_name
def test_every_argument_reaches_its_part(name, monkeypatch):
  """By recording what the parts of the chain are called with."""
  received = {}

  def record(part, signature_of):
    def factory(*args, **kwargs):
      received[part] = inspect.signature(signature_of).bind(*args, **kwargs).arguments
      return optax.identity()

    return factory

  for part, function in (
    (f"scale_by_{name}", SCALINGS[name]),
    ("decoupled_weight_decay", aliases.decoupled_weight_decay),
  ):
    monkeypatch.setattr(aliases, part, record(part, function))
  monkeypatch.setattr(
    optax,
    "scale_by_learning_rate",
    record("rate", optax.scale_by_learning_rate),
  )
  ALIASES[name](**ARGUMENTS[name])
  assert received.pop("rate") == {"learning_rate": 0.3}
  assert received.pop("decoupled_weight_decay") == {"weight_decay": 0.2, "mask": mask}
  (scaling,) = received.values()
  expected = ARGUMENTS[name].items()
  others = {"learning_rate", "weight_decay", "mask"}
  assert scaling == {key: value for key, value in expected if key not in others}


def chained(name, arguments):
  """The alias as its documentation puts it together."""
  arguments = dict(arguments)
  rate, decay, mask = map(arguments.pop, ("learning_rate", "weight_decay", "mask"))
  return optax.chain(
    SCALINGS[name](**arguments),
    optax.add_decayed_weights(decay, mask),
    optax.scale_by_learning_rate(rate),
  )


def run(tx, params=PARAMS, gradients=GRADIENTS):
  """Updates, stacked over the steps, and the last state."""
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

  @jax.jit
  def train(params):
    def step(state, gradient):
      updates, state = tx.update(gradient, state, params)
      return state, updates

    return jax.lax.scan(step, tx.init(params), stacked)

  state, updates = train(params)
  return updates, state


@pytest.mark.promotes
@each_name
def test_an_alias_is_its_chain(name):
  arguments = {**ARGUMENTS[name], "inverse": "sweep"}  # LAPACK hangs in some jaxlibs
  updates, state = run(ALIASES[name](**arguments))
  expected, expected_state = run(chained(name, arguments))
  chex.assert_trees_all_equal(updates, expected)
  chex.assert_trees_all_equal(state[0], expected_state[0])


@each_name
def test_the_way_of_inverting_is_passed_on(name):
  params = {"Dense": PARAMS["Dense"]}
  for method in ("sweep", "linalg"):
    tx = ALIASES[name](0.1, inverse=method, partition=PARTITION)
    state = jax.eval_shape(tx.init, params)
    text = jax.jit(tx.update).lower(params, state, params).as_text()
    assert ("lapack" in text) == (method == "linalg")


@each_name
def test_the_dtype_of_inverses_is_passed_on_and_checked(name):
  state = ALIASES[name](0.1, inverse_dtype="bfloat16").init(PARAMS)
  assert jnp.dtype("bfloat16") in {leaf.dtype for leaf in jax.tree.leaves(state)}
  for dtype in ("int32", "complex64"):
    with pytest.raises(ValueError, match=f"inverse_dtype is {dtype}; use a floating"):
      ALIASES[name](0.1, inverse_dtype=dtype)


# Adam's calls.


@pytest.mark.parametrize("other", [optax.adam, optax.adamw])
def test_signature_begins_as_that_of_adam_and_has_all_of_it(other):
  """Names, order, kinds and defaults; only weight decay is 0 as in ``adam``."""
  ours, theirs = parameters(mbf_optax.mbf_adam), parameters(other)
  for index, (name, parameter) in enumerate(theirs.items()):
    assert ours[name].kind == parameter.kind
    if parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD:
      assert list(ours)[index] == name
    if name not in ("learning_rate", "weight_decay"):
      assert ours[name].default == parameter.default, name


ONES = random_tree(0, {"kernel": (1, 6), "scale": (4,)})
ONES_GRADIENTS = [
  random_tree(seed, {"kernel": (1, 6), "scale": (4,)}) for seed in (1, 2)
]


def schedule(count):
  return 0.1 / (1 + count)


CALLS = {
  "positional adam": ("adam", (1e-3, 0.5, 0.9, 1e-7, 1e-8, "bfloat16"), {}),
  "positional adamw": (
    "adamw",
    (1e-3, 0.5, 0.9, 1e-7, 1e-8, None, 0.1, mask),
    {"nesterov": True},
  ),
  "second and third": ("adam", (1e-3, 0.5, 0.9), {}),
  "eps_root": ("adam", (1e-3,), {"eps_root": 1e-2}),
  "mu_dtype": ("adam", (1e-3,), {"mu_dtype": jnp.bfloat16}),
  "nesterov": ("adam", (1e-3,), {"nesterov": True}),
  "mask": ("adamw", (1e-3,), {"weight_decay": 0.1, "mask": mask}),
  "tree mask": (
    "adamw",
    (1e-3,),
    {"weight_decay": 0.1, "mask": {"kernel": True, "scale": False}},
  ),
  "schedules": ("adamw", (schedule,), {"weight_decay": schedule}),
}


@pytest.mark.promotes
@pytest.mark.parametrize("call", CALLS)
def test_calls_of_adam_mean_the_same_with_the_name_changed(call):
  name, args, kwargs = CALLS[call]
  updates, _ = run(mbf_optax.mbf_adam(*args, **kwargs), ONES, ONES_GRADIENTS)
  expected, _ = run(getattr(optax, name)(*args, **kwargs), ONES, ONES_GRADIENTS)
  chex.assert_trees_all_close(updates, expected, rtol=2e-6, atol=1e-9)


def test_what_arguments_of_the_scalings_are_compared_with_an_oracle():
  """A new argument needs a place in this list, and a test that it points to."""
  oracle = {"damping", "curvature_ema", "curvature_update_period"}
  oracle |= {"inverse_update_period", "partition"}
  alias = {"inverse", "inverse_dtype", "precision"}
  fisher = oracle | alias | {"momentum", "relative_damping"}  # test_fisher.py
  adam = oracle | alias | {"b1", "b2", "eps", "eps_root", "nesterov", "mu_dtype"}
  adam |= {"exponent", "output_exponent"}  # test_adam.py
  assert parameters(mbf_optax.scale_by_mbf).keys() == fisher
  assert parameters(mbf_optax.scale_by_mbf_adam).keys() == adam


@functools.cache
def injected(name):
  numbers = {
    key: value
    for key, value in ARGUMENTS[name].items()
    if isinstance(value, float | int)
  }
  numbers.pop("nesterov", None)
  tx = optax.inject_hyperparams(ALIASES[name], static_args=("partition",))(
    **numbers, partition=PARTITION
  )
  return numbers, tx


@each_name
def test_every_number_is_injected(name):
  numbers, tx = injected(name)
  state = tx.init(PARAMS)
  assert state.hyperparams.keys() == numbers.keys()


@pytest.mark.mistyped
def test_a_partition_that_is_injected_needs_static_args_and_is_told_so():
  params = {"linear": {"w": jnp.ones((3, 5))}}
  partition = mbf_optax.haiku_partition()
  tx = optax.inject_hyperparams(mbf_optax.mbf_adam)(1e-3, partition=partition)
  with pytest.raises(TypeError, match=r'inject_hyperparams.*static_args=\("partition'):
    tx.init(params)
  factory = optax.inject_hyperparams(mbf_optax.mbf_adam, static_args="partition")
  state = factory(1e-3, partition=partition).init(params)
  assert list(state.inner_state[0].curvature) == ["linear/w"]


@pytest.mark.mistyped
def test_a_mask_that_is_injected_needs_static_args_and_is_told_so():
  """In place of no decay at all."""
  tx = optax.inject_hyperparams(mbf_optax.mbf_adam)(
    1e-3, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)
  )
  with pytest.raises(TypeError, match=r'inject_hyperparams.*static_args=\("mask'):
    tx.init(PARAMS)
