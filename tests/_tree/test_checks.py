"""Every refusal reads well."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import mbf_optax

PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}


def refused(*parts):
  """A ``ValueError`` whose message has all the parts, in this order."""
  return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, parts)))


NUMBERS = [
  ("damping", 0.0, "must be positive"),
  ("damping", -1e-3, "must be positive"),
  ("damping", float("nan"), "must be positive"),
  ("curvature_ema", 1.0, "[0, 1)"),
  ("curvature_ema", -0.1, "[0, 1)"),
  ("curvature_ema", float("nan"), "[0, 1)"),
  ("momentum", 1.0, "[0, 1)"),
  ("momentum", -0.5, "[0, 1)"),
  ("curvature_update_period", 0, "whole number"),
  ("curvature_update_period", 2.5, "whole number"),
  ("inverse_update_period", 0, "whole number"),
  ("inverse_update_period", -3, "whole number"),
]


@pytest.mark.parametrize("factory", [mbf_optax.scale_by_mbf, mbf_optax.mbf])
@pytest.mark.parametrize(("argument", "value", "remedy"), NUMBERS)
def test_numbers(factory, argument, value, remedy):
  rate = {"learning_rate": 0.1} if factory is mbf_optax.mbf else {}
  with refused("mbf_optax", argument, str(value), remedy):
    factory(**rate, **{argument: value})


@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("damping", 0.0),
    ("b1", 1.0),
    ("b2", 1.0),
    ("b2", -0.1),
    ("curvature_ema", 1.5),
    ("curvature_update_period", 0),
    ("inverse_update_period", 1.5),
  ],
)
def test_numbers_of_mbf_adam_are_named_as_its_user_wrote_them(argument, value):
  with refused("mbf_optax", f"{argument} is {value}"):
    mbf_optax.mbf_adam(0.1, **{argument: value})


@pytest.mark.parametrize("argument", ["damping", "curvature_ema", "momentum"])
def test_known_arrays_are_checked_and_unknown_values_are_not(argument):
  with refused(argument):
    mbf_optax.scale_by_mbf(**{argument: jnp.asarray(-1.0)})
  jax.eval_shape(
    lambda value: mbf_optax.scale_by_mbf(**{argument: value}).init(PARAMS), -1.0
  )
  mbf_optax.scale_by_mbf(damping=lambda count: 0.0 * count)  # a schedule is unknown


@pytest.mark.mistyped
@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("momentum", 0.5),
    ("curvature_ema", 0.5),
    ("curvature_update_period", 2),
    ("inverse_update_period", 2),
  ],
)
def test_what_cannot_be_a_schedule(argument, value):
  schedule = {argument: lambda count: value}
  with refused(argument, "is a function", "optax.inject_hyperparams"):
    mbf_optax.scale_by_mbf(**schedule)
  optax.inject_hyperparams(mbf_optax.scale_by_mbf)(**schedule).init(PARAMS)


@pytest.mark.parametrize("argument", ["exponent", "output_exponent"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_exponents(argument, value):
  with refused(argument, str(value), "[0, 1]"):
    mbf_optax.scale_by_mbf_adam(**{argument: value})
  jax.eval_shape(
    lambda p: mbf_optax.scale_by_mbf_adam(**{argument: p}).init(PARAMS), 2.0
  )


@pytest.mark.mistyped
@pytest.mark.parametrize(
  "factory", [mbf_optax.scale_by_mbf, mbf_optax.scale_by_mbf_adam]
)
@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("damping", None),
    ("damping", "small"),
    ("damping", "0.1"),
    ("inverse_update_period", "5"),
    ("curvature_ema", "high"),
    ("curvature_update_period", "5 steps"),
    ("inverse_update_period", None),
  ],
)
def test_what_is_no_number(factory, argument, value):
  with pytest.raises(TypeError, match=rf"{argument} is {value!r}; it must be a number"):
    factory(**{argument: value})


@pytest.mark.mistyped
@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_what_is_no_partition(factory):
  with pytest.raises(TypeError, match=r"haiku_partition itself; call it: haiku_partit"):
    factory(0.1, partition=mbf_optax.haiku_partition)
  with pytest.raises(TypeError, match=r"partition is 'flax'; use flax_partition\(\)"):
    factory(0.1, partition="flax")


@pytest.mark.mistyped
def test_a_state_of_the_other_optimizer():
  one, other = mbf_optax.scale_by_mbf(), mbf_optax.scale_by_mbf_adam()
  with pytest.raises(TypeError, match="got a MbfAdamState where it needs the MbfState"):
    one.update(PARAMS, other.init(PARAMS))
  with pytest.raises(TypeError, match="got a MbfState where it needs the MbfAdamState"):
    other.update(PARAMS, one.init(PARAMS))


@pytest.mark.mistyped
def test_unknown_inverse():
  with refused("inverse is 'lu'", "'sweep'", "'linalg'"):
    mbf_optax.scale_by_mbf(inverse="lu")


@pytest.mark.mistyped
@pytest.mark.parametrize("dtype", ["bf16", "int32", complex])
def test_an_inverse_dtype_that_is_not_floating(dtype):
  with refused(f"inverse_dtype is {dtype}", "'bfloat16'"):
    mbf_optax.scale_by_mbf_adam(inverse_dtype=dtype)


def dense(**changes):
  return {"Dense_0": {**PARAMS["Dense_0"], **changes}}


DIFFERENT = [
  ({"Dense_0": {"kernel": jnp.ones((3, 2))}}, "Dense_0/bias", "only the parameters"),
  (dense(scale=jnp.ones(2)), "Dense_0/scale", "only the gradients"),
  ({"Dense_1": PARAMS["Dense_0"]}, "Dense_0/bias", "only the parameters"),
  (dense(kernel=jnp.ones((2, 3))), "Dense_0/kernel", "(2, 3)", "(3, 2)"),
  (dense(bias=jnp.ones(3)), "Dense_0/bias", "(3,)", "(2,)"),
  (dense(bias=None), "Dense_0/bias", "only the parameters"),
  (jnp.ones(3), "Dense_0/bias", "only the parameters"),
]


@pytest.mark.parametrize("case", DIFFERENT, ids=lambda case: " ".join(case[1:]))
@pytest.mark.parametrize("name", ["mbf", "mbf_adam", "scale_by_mbf"])
def test_gradients_that_differ_from_the_parameters(name, case):
  gradients, *parts = case
  rate = {} if name == "scale_by_mbf" else {"learning_rate": 0.1}
  tx = getattr(mbf_optax, name)(**rate)
  with refused(*parts):
    tx.update(gradients, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
  "second", [{"Dense_0": {"bias": jnp.ones(2)}}, dense(kernel=jnp.ones((2, 3)))]
)
def test_curvature_gradients_that_lack_a_leaf(second):
  tx = mbf_optax.scale_by_mbf()
  with refused("curvature_gradients", "'Dense_0/kernel'", "(3, 2)"):
    tx.update(PARAMS, tx.init(PARAMS), curvature_gradients=second)


@pytest.mark.promotes  # optax multiplies a rate in float32 with updates in bfloat16
def test_decays_that_half_precision_rounds_to_one():
  params = {"Dense_0": {"kernel": jnp.ones((3, 8), jnp.bfloat16)}}
  static = ("weight_decay", "mask")
  rounded = optax.inject_hyperparams(mbf_optax.mbf_adam, static_args=static)(1e-3)
  with pytest.raises(ValueError, match=r"b2 is 1\.0; .* hyperparam_dtype=jnp\.float32"):
    rounded.init(params)
  remedy = optax.inject_hyperparams(
    mbf_optax.mbf_adam, static_args=static, hyperparam_dtype=jnp.float32
  )(1e-3)
  updates, _ = jax.jit(remedy.update)(params, remedy.init(params))
  assert jnp.all(updates["Dense_0"]["kernel"] < 0)
