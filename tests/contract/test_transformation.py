"""Structure, dtypes, convergence, extra arguments, compilation and vectorisation."""

import inspect
import logging

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from absl.testing import parameterized

import mbf_optax
from mbf_optax._linalg import triangles
from tests.contract import common

each_transformation = common.each_transformation


class VariantTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(common.NAMES)
  def test_structure_shape_dtype_and_finiteness(self, name):
    tx = common.make(name)
    init, update = self.variant(tx.init), self.variant(tx.update)
    first = state = init(common.PARAMS)
    for gradients in common.GRADIENTS[:2]:
      updates, state = update(gradients, state, common.PARAMS)
      chex.assert_trees_all_equal_structs(updates, gradients)
      chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
      chex.assert_trees_all_equal_structs(state, first)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
      chex.assert_tree_all_finite((updates, state))
      chex.assert_tree_has_only_ndarrays(state)
    expected = common.run(*common.compiled(name))[1]
    chex.assert_trees_all_close((updates, state), expected, rtol=1e-5, atol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(common.NAMES)
  def test_state_of_init_is_zero_but_for_identities(self, name):
    state = self.variant(common.make(name).init)(common.PARAMS)
    inner = common.our_state(state)
    for moment in common.moments(inner):
      chex.assert_trees_all_equal(moment, jax.tree.map(jnp.zeros_like, common.PARAMS))
    assert inner.bias_correction == 0
    for layer in inner.curvature.values():
      sides = layer if isinstance(layer, mbf_optax.TwoSidedState) else (layer,)
      for side in sides:
        identity_before_the_first_gradient(side)


def identity_before_the_first_gradient(layer):
  """Of blocks of four elements, packed, or of a side of a matrix."""
  if isinstance(layer, mbf_optax.BlockState):
    inverse = layer.inverse
    if inverse.shape == (10, 5):
      identity = triangles.identity(4, (5,), jnp.float32)
    else:
      identity = jnp.eye(inverse.shape[-1])[None]
    chex.assert_trees_all_equal(inverse, identity)
  else:
    assert isinstance(layer, mbf_optax.ElementwiseState)
  chex.assert_trees_all_equal(layer[0], jnp.zeros_like(layer[0]))


INPUTS = common.random_tree(8, (20, 4))
TRUTH = common.random_tree(
  9, {"layer": {"kernel": (4, 3), "bias": (3,)}, "free": (2, 3, 2)}
)


def predict(layer):
  offsets = jnp.broadcast_to(layer["bias"][None], (20, 3))
  return jnp.matmul(INPUTS, layer["kernel"]) + offsets


def losses(params):
  """Of a linear regression on noiseless data, and of a quadratic."""
  return {
    "regression": jnp.mean(
      jnp.square(predict(params["layer"]) - predict(TRUTH["layer"]))
    ),
    "quadratic": jnp.sum(jnp.square(params["free"] - TRUTH["free"])),
  }


@each_transformation
def test_optimization(name):
  tx = common.make(name, **({"weight_decay": 0.0} if name.startswith("mbf") else {}))
  # All learning rates fall to zero, and scale_by_mbf has none of its own.
  fall = optax.linear_schedule(1.0, 0.0, 400)
  sign = -0.1 if name == "scale_by_mbf" else 1.0
  tx = optax.chain(tx, optax.scale_by_schedule(lambda count: sign * fall(count)))

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      value, gradients = jax.value_and_grad(lambda p: sum(losses(p).values()))(params)
      updates, state = tx.update(gradients, state, params, value=value)
      return (optax.apply_updates(params, updates), state), losses(params)

    return jax.lax.scan(step, (params, tx.init(params)), length=400)

  _, history = train(jax.tree.map(jnp.zeros_like, TRUTH))
  for problem, values in history.items():
    assert values[-1] < 1e-3 * values[0], problem


@each_transformation
def test_unknown_extra_arguments_are_accepted(name):
  tx = common.make(name)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  state = tx.init(common.PARAMS)
  updates, _ = jax.eval_shape(
    lambda *args: tx.update(*args, value=1.0, nobody_expects_this=None),
    common.GRADIENTS[0],
    state,
    common.PARAMS,
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, common.GRADIENTS[0])


@each_transformation
def test_parameters_are_optional_without_weight_decay(name):
  tx = common.make(name, **({"weight_decay": 0.0} if name.startswith("mbf") else {}))
  state = tx.init(common.PARAMS)
  expected = jax.eval_shape(tx.update, common.GRADIENTS[0], state, common.PARAMS)
  for args in ((), (None,)):
    given = jax.eval_shape(
      lambda gradients, state, args=args: tx.update(gradients, state, *args),
      common.GRADIENTS[0],
      state,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(given, expected)


class Compilations(logging.Handler):
  """Messages of jax's compilation log."""

  def __init__(self):
    super().__init__()
    self.messages = []

  def emit(self, record):
    if "Compiling" in record.getMessage():
      self.messages.append(record.getMessage())

  def __enter__(self):
    self.context = jax.log_compiles()
    self.context.__enter__()
    logging.getLogger("jax").addHandler(self)
    return self.messages

  def __exit__(self, *exception):
    logging.getLogger("jax").removeHandler(self)
    return self.context.__exit__(*exception)


@each_transformation
def test_second_call_compiles_nothing(name):
  tx = common.make(name)
  update = common.Counted(tx.update)  # not the one that other tests call
  state = tx.init(common.PARAMS)
  _, state = update(common.GRADIENTS[0], state, common.PARAMS)
  with Compilations() as messages:
    for gradients in common.GRADIENTS[1:]:
      _, state = update(gradients, state, common.PARAMS)
  assert not messages
  assert update.traces == 1


def test_the_compilation_log_is_read():
  with Compilations() as messages:
    jax.jit(lambda x: x + 12.5)(jnp.ones(7))
  assert messages


def schedule(count):
  return 0.1 + 0.2 * jnp.asarray(count, jnp.float32)


SCHEDULED = [
  ("mbf", "learning_rate"),
  ("mbf", "damping"),
  ("mbf_adam", "learning_rate"),
  ("mbf_adam", "damping"),
  ("mbf_adam", "exponent"),
  ("mbf_adam", "output_exponent"),
  ("scale_by_mbf", "damping"),
  ("graft", "damping"),
]


@pytest.mark.parametrize(("name", "hyperparameter"), SCHEDULED)
def test_schedule_is_its_values_one_by_one(name, hyperparameter):
  tx = common.make(name, **{hyperparameter: schedule})
  update = common.Counted(tx.update)
  steps = common.run(tx, update)
  assert update.traces == 1  # the first step and all others

  plain = common.make(name)
  state = plain.init(common.PARAMS)
  for count, (gradients, (updates, _)) in enumerate(
    zip(common.GRADIENTS, steps, strict=True)
  ):
    numbers = common.HYPERPARAMETERS[name]
    changes = {
      other: jnp.asarray(numbers[other])
      for other in ("learning_rate", "damping", "exponent", "output_exponent")
      if other in numbers
    }
    changes[hyperparameter] = schedule(count)
    expected, state = common.traced(name)(gradients, state, common.PARAMS, changes)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


@each_transformation
def test_vmap_over_hyperparameters_is_a_loop(name):
  settings = {
    "learning_rate": [0.1, 0.2, 0.3],
    "damping": [0.1, 1.0, 10.0],
    common.MOMENTUM.get(name, "momentum"): [0.0, 0.5, 0.9],
    "curvature_ema": [0.9, 0.5, 0.0],
    "curvature_update_period": [1, 2, 1],
    "inverse_update_period": [3, 1, 2],
  }
  if name == "scale_by_mbf":
    del settings["learning_rate"]
  if name == "mbf_adam":
    settings |= {
      "b2": [0.9, 0.99, 0.999],
      "eps": [1e-8, 1e-4, 1e-2],
      "eps_root": [0.0, 1e-4, 1e-2],
      "exponent": [0.0, 0.5, 1.0],
      "output_exponent": [1.0, 0.3, 0.0],
    }
  settings = {key: jnp.asarray(values) for key, values in settings.items()}

  parameters = common.PARAMS["dense"]
  gradients = [gradients["dense"] for gradients in common.GRADIENTS]
  gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

  def train(changes):
    tx = common.make(name, **changes)

    def step(state, gradient):
      updates, state = tx.update(gradient, state, parameters)
      return state, updates

    return jax.lax.scan(step, tx.init(parameters), gradients)

  together = jax.jit(jax.vmap(train))(settings)
  train = jax.jit(train)
  for index in range(3):
    alone = train({key: values[index] for key, values in settings.items()})
    chex.assert_trees_all_close(
      jax.tree.map(lambda leaf, index=index: leaf[index], together),
      alone,
      rtol=1e-4,
      atol=1e-5,
    )


@pytest.mark.parametrize("name", ["mbf", "mbf_adam", "scale_by_mbf"])
@pytest.mark.parametrize(
  "argument", ["learning_rate", "damping", "exponent", "output_exponent"]
)
def test_schedules_are_announced_as_live_annotations(name, argument):
  parameters = inspect.signature(common.FACTORIES[name]).parameters
  if argument in parameters:
    assert parameters[argument].annotation == optax.ScalarOrSchedule
