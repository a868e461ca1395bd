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


def test_unknown_inverse():
  with refused("inverse is 'lu'", "'sweep'", "'linalg'"):
    mbf_optax.scale_by_mbf(inverse="lu")


def test_unknown_dense():
  with refused("dense='diagonal'", "'auto'", "'full'", "'shared'", "'low_rank'"):
    mbf_optax.flax_partition(dense="diagonal")


@pytest.mark.parametrize("argument", ["rank", "full_limit"])
@pytest.mark.parametrize("value", [0, -2])
def test_rank_and_limit_of_the_partition(argument, value):
  with refused(f"{argument} is {value}", "at least 1"):
    mbf_optax.flax_partition(**{argument: value})


def test_rank_of_a_layer():
  with refused("rank is 0", "at least 1"):
    mbf_optax.Layer((0,), "low_rank", rank=0)


def test_unknown_estimator_of_a_layer():
  with refused("'diagonal'", "'full'", "'low_rank'", "'rms'"):
    mbf_optax.Layer((0,), "diagonal")


def test_layer_whose_axes_do_not_go_with_its_estimator():
  with refused("'rms'", "element by element", "(0,)"):
    mbf_optax.Layer((0,), "rms")
  with refused("'full'", "block_axes"):
    mbf_optax.Layer()


def test_unknown_override():
  with refused("'kernel'", "'diagonal'", "Layer", "'full'", "'rms'"):
    mbf_optax.flax_partition(overrides=[("kernel", "diagonal")])


@pytest.mark.parametrize("pattern", ["kernel[", "*/kernel", "a{2,1}"])
def test_override_that_is_no_regular_expression(pattern):
  with refused(repr(pattern), "regular expression", "re.escape"):
    mbf_optax.flax_partition(overrides=[(pattern, "shared")])


@pytest.mark.parametrize("shape", [(0, 3), (0, 0)])
@pytest.mark.parametrize("estimator", ["full", "shared", "low_rank"])
def test_blocks_without_elements(shape, estimator):
  layer = mbf_optax.Layer((0,), estimator)
  partition = mbf_optax.flax_partition(overrides=[("kernel", layer)])
  with refused("'Dense_0/kernel'", str(shape), "no element", "(0,)", "rms"):
    partition({"Dense_0": {"kernel": jnp.ones(shape)}})


def test_override_that_matches_nothing():
  partition = mbf_optax.flax_partition(overrides=[("Dense_7", "shared")])
  with refused("'Dense_7'", "matches no", "Dense_0/bias, Dense_0/kernel"):
    mbf_optax.scale_by_mbf(partition=partition).init(PARAMS)


@pytest.mark.parametrize(
  ("layer", "parts"),
  [
    (mbf_optax.Layer((2,)), ("(3, 2)", "(2,)", "-2 to 1")),
    (mbf_optax.Layer((-3,)), ("(3, 2)", "(-3,)", "-2 to 1")),
    (mbf_optax.Layer((0, 0)), ("(3, 2)", "(0, 0)", "distinct")),
    (mbf_optax.Layer((0,), stack_axes=1), ("(3, 2)", "(0,)", "1 stacked")),
    (mbf_optax.Layer((1,)), ("Dense_0/bias", "(2,)", "(3,)", "joins_bias=False")),
  ],
  ids=str,
)
def test_layer_that_does_not_fit(layer, parts):
  partition = mbf_optax.flax_partition(overrides=[("kernel", layer)])
  with pytest.raises(ValueError, match="Dense_0/kernel") as caught:
    mbf_optax.scale_by_mbf(partition=partition).init(PARAMS)
  for part in parts:
    assert part in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_conv_override_that_does_not_fit(shape):
  partition = mbf_optax.flax_partition(overrides=[("kernel", "conv")])
  with refused("Conv_0/kernel", str(shape), "'conv'", "spatial"):
    mbf_optax.scale_by_mbf(partition=partition).init(
      {"Conv_0": {"kernel": jnp.ones(shape)}}
    )


@pytest.mark.parametrize("factory", [mbf_optax.scale_by_mbf, mbf_optax.summarize])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_integer_parameters(factory, dtype):
  params = {**PARAMS, "step": {"count": jnp.zeros(2, dtype)}}
  with refused("step/count", jnp.dtype(dtype).name, "optax.masked"):
    factory(params) if factory is mbf_optax.summarize else factory().init(params)


def test_two_leaves_of_one_path():
  with refused("same path 'a/b'", "rename"):
    mbf_optax.scale_by_mbf().init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})


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


@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
@pytest.mark.parametrize("decay", [0.1, jnp.asarray(0.1)])
def test_weight_decay_without_parameters(factory, decay):
  tx = factory(0.1, weight_decay=decay)
  state = tx.init(PARAMS)
  with refused("weight decay", "params"):
    jax.eval_shape(tx.update, PARAMS, state)


def test_warm_start_without_gradients():
  tx = mbf_optax.mbf(0.1)
  with refused("warm_start", "empty", "at least one"):
    mbf_optax.warm_start(tx, tx.init(PARAMS), PARAMS, [])


def test_warm_start_of_accumulated_gradients():
  inner = mbf_optax.mbf(0.1)
  tx = optax.MultiSteps(inner, 2)
  state = tx.init(PARAMS)
  with refused("MultiSteps", "inner_opt_state=warm_start"):
    mbf_optax.warm_start(tx, state, PARAMS, [PARAMS])
  warm = mbf_optax.warm_start(inner, state.inner_opt_state, PARAMS, [PARAMS])
  assert warm[0].weight == 1


def test_warm_start_without_mbf():
  tx = optax.adam(0.1)
  with refused("warm_start", "no MbfState", "tx.init(params)"):
    mbf_optax.warm_start(tx, tx.init(PARAMS), PARAMS, [PARAMS])


@pytest.mark.parametrize(
  "second", [{"Dense_0": {"bias": jnp.ones(2)}}, dense(kernel=jnp.ones((2, 3)))]
)
def test_curvature_gradients_that_lack_a_leaf(second):
  tx = mbf_optax.scale_by_mbf()
  with refused("curvature_gradients", "'Dense_0/kernel'", "(3, 2)"):
    tx.update(PARAMS, tx.init(PARAMS), curvature_gradients=second)


def readings():
  return list(mbf_optax.flax_partition()(PARAMS))


def wrong_partitions():
  (whole,) = readings()
  elsewhere = whole._replace(path="Dense_9/kernel")
  alone = mbf_optax.Reading("Dense_0/bias", None, (2,), mbf_optax.Layer((), "rms"))
  return {
    "twice": ([whole, whole], "'Dense_0/kernel'", "twice"),
    "bias twice": ([whole, alone], "'Dense_0/bias'", "twice"),
    "left out": ([whole._replace(bias_path=None)], "'Dense_0/bias'", "out", "rms"),
    "nothing": ([], "'Dense_0/bias'", "out"),
    "elsewhere": ([elsewhere], "'Dense_9/kernel'", "no leaf"),
  }


@pytest.mark.parametrize("case", wrong_partitions())
def test_custom_partition_that_does_not_cover_the_parameters_once(case):
  found, *parts = wrong_partitions()[case]
  with refused(*parts):
    mbf_optax.scale_by_mbf(partition=lambda params: found).init(PARAMS)
