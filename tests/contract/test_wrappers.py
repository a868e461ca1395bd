"""Inside optax's wrappers: what goes in and comes out is what it would be outside."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

import mbf_optax
from tests.contract import common

each_transformation = common.each_transformation
SMALL = {"a": {"kernel": (2, 5), "bias": (5,)}, "b": {"kernel": (2, 5), "bias": (5,)}}
SMALL_PARAMS = common.random_tree(20, SMALL)
SMALL_GRADIENTS = [common.random_tree(seed, SMALL) for seed in (21, 22, 23)]


@functools.cache
def of_one_layer(name):
  """The updates of layer ``a`` by itself, step after step."""
  tx = common.make(name)
  gradients = [gradient["a"] for gradient in SMALL_GRADIENTS]
  steps = common.run(tx, jax.jit(tx.update), gradients, SMALL_PARAMS["a"])
  return [updates for updates, _ in steps]


@each_transformation
def test_tree_map_params(name):
  tx = common.make(name)
  state = tx.init(common.PARAMS)
  chex.assert_trees_all_equal(
    optax.tree_map_params(tx, lambda leaf: leaf, state), state
  )

  doubled = optax.tree_map_params(tx, lambda leaf: leaf + 1, state)
  for moment in common.moments(common.our_state(doubled)):
    chex.assert_trees_all_equal(moment, jax.tree.map(jnp.ones_like, common.PARAMS))
  kept = optax.tree.get_all_with_path(state, "curvature")
  chex.assert_trees_all_equal(optax.tree.get_all_with_path(doubled, "curvature"), kept)


@each_transformation
def test_tree_map_params_with_specifications(name):
  """The usual way from the parameters' shardings to those of the state.

  The layers' statistics are one entry, so the result is a prefix of the state.
  """
  tx = common.make(name)
  state = tx.init(common.PARAMS)
  specifications = jax.tree.map(lambda leaf: f"like {leaf.shape}", common.PARAMS)
  specified = optax.tree_map_params(
    tx,
    lambda leaf, specification: specification,
    state,
    specifications,
    transform_non_params=lambda leaf: "replicated",
  )
  given = jax.tree.map(
    lambda specification, part: [specification] * len(jax.tree.leaves(part)),
    specified,
    state,
  )
  for specification, leaf in zip(
    jax.tree.leaves(given), jax.tree.leaves(state), strict=True
  ):
    assert specification in ("replicated", f"like {leaf.shape}")
  copies = {"mbf_adam": 2, "graft": 2}.get(name, 1)  # of the parameters in the state
  leaves = jax.tree.leaves(specified)
  assert len(leaves) - leaves.count("replicated") == copies * len(
    jax.tree.leaves(common.PARAMS)
  )


def test_specifications_place_the_state():
  tx = common.make("mbf_adam")
  state = tx.init(common.PARAMS)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  specified = optax.tree_map_params(
    tx, lambda leaf: place, state, transform_non_params=lambda leaf: place
  )
  chex.assert_trees_all_equal(jax.device_put(state, specified), state)


@each_transformation
def test_inject_hyperparams(name):
  hyperparameters = common.HYPERPARAMETERS[name]
  tx = optax.inject_hyperparams(common.FACTORIES[name])(**hyperparameters)
  state = tx.init(common.PARAMS)
  assert set(state.hyperparams) == set(hyperparameters)  # every one is injected
  plain, update = common.compiled(name)
  expected = common.run(plain, update)
  injected = common.run(tx, common.Counted(tx.update))
  for (updates, state), (plain_updates, plain_state) in zip(
    injected, expected, strict=True
  ):
    chex.assert_trees_all_close(updates, plain_updates, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.inner_state, plain_state, rtol=1e-4, atol=1e-6)


def test_injected_hyperparameters_take_effect_without_recompilation():
  tx = optax.inject_hyperparams(mbf_optax.mbf)(0.1)
  update = common.Counted(tx.update)
  state = tx.init(SMALL_PARAMS)
  base, _ = update(SMALL_GRADIENTS[0], state, SMALL_PARAMS)
  state.hyperparams["learning_rate"] = jnp.asarray(0.2, jnp.float32)
  faster, _ = update(SMALL_GRADIENTS[0], state, SMALL_PARAMS)
  chex.assert_trees_all_close(faster, jax.tree.map(lambda u: 2 * u, base), rtol=1e-6)
  state.hyperparams["damping"] = jnp.asarray(1e6, jnp.float32)
  damped, _ = update(SMALL_GRADIENTS[0], state, SMALL_PARAMS)
  expected = jax.tree.map(lambda g: -0.2 * g / 1e6, SMALL_GRADIENTS[0])
  chex.assert_trees_all_close(damped, expected, rtol=1e-4)
  assert update.traces == 1


@each_transformation
def test_chain(name):
  tx = optax.chain(optax.scale(3.0), common.make(name), optax.scale(-2.0))
  plain, update = common.compiled(name)
  tripled = [jax.tree.map(lambda g: 3 * g, g) for g in common.GRADIENTS]
  expected = common.run(plain, update, tripled)
  chained = common.run(tx, jax.jit(tx.update))
  for (updates, state), (plain_updates, plain_state) in zip(
    chained, expected, strict=True
  ):
    doubled = jax.tree.map(lambda u: -2 * u, plain_updates)
    chex.assert_trees_all_close(updates, doubled, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state[1], plain_state, rtol=1e-4, atol=1e-6)


@each_transformation
def test_masked(name):
  tx = optax.masked(common.make(name), {"a": True, "b": False})
  steps = common.run(tx, jax.jit(tx.update), SMALL_GRADIENTS, SMALL_PARAMS)
  expected = of_one_layer(name)
  for (updates, _), alone, gradients in zip(
    steps, expected, SMALL_GRADIENTS, strict=True
  ):
    chex.assert_trees_all_close(updates["a"], alone, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(updates["b"], gradients["b"])


def test_masked_by_leaf():
  """A kernel whose bias is masked out is a layer without a bias."""
  mask = {"a": {"kernel": True, "bias": False}, "b": {"kernel": False, "bias": True}}
  tx = optax.masked(mbf_optax.scale_by_mbf(), mask)
  state = tx.init(SMALL_PARAMS)
  updates, state = jax.jit(tx.update)(SMALL_GRADIENTS[0], state)
  assert state.inner_state.curvature["a/kernel"].statistics.shape[0] == 3  # 2 x 2
  chex.assert_trees_all_equal(updates["a"]["bias"], SMALL_GRADIENTS[0]["a"]["bias"])
  chex.assert_trees_all_equal(updates["b"]["kernel"], SMALL_GRADIENTS[0]["b"]["kernel"])
  chex.assert_tree_all_finite((updates, state))


@each_transformation
def test_partition(name):
  """One group under the transformation, the other under SGD."""
  tx = optax.partition(
    {"ours": common.make(name), "theirs": optax.sgd(0.5)}, {"a": "ours", "b": "theirs"}
  )
  steps = common.run(tx, jax.jit(tx.update), SMALL_GRADIENTS, SMALL_PARAMS)
  for (updates, _), alone, gradients in zip(
    steps, of_one_layer(name), SMALL_GRADIENTS, strict=True
  ):
    chex.assert_trees_all_close(updates["a"], alone, rtol=1e-5, atol=1e-7)
    sgd = jax.tree.map(lambda g: -0.5 * g, gradients["b"])
    chex.assert_trees_all_close(updates["b"], sgd)


def test_partition_into_two_groups_of_ours():
  tx = optax.partition(
    {"fast": common.make("mbf"), "slow": common.make("mbf", learning_rate=0.01)},
    lambda params: {"a": "fast", "b": "slow"},
  )
  params = {"a": SMALL_PARAMS["a"], "b": SMALL_PARAMS["a"]}
  gradients = [{"a": g["a"], "b": g["a"]} for g in SMALL_GRADIENTS]
  for (updates, _), alone in zip(
    common.run(tx, jax.jit(tx.update), gradients, params),
    of_one_layer("mbf"),
    strict=True,
  ):
    chex.assert_trees_all_close(updates["a"], alone, rtol=1e-5)
    slow = jax.tree.map(lambda u: 0.1 * u, alone)
    chex.assert_trees_all_close(updates["b"], slow, rtol=1e-5)


@each_transformation
def test_multi_steps(name):
  """Two gradients a step are one step along their mean."""
  plain, update = common.compiled(name)
  means, pairs = [], []
  for gradients in common.GRADIENTS[:3]:
    means.append(gradients)
    pairs.append(jax.tree.map(lambda g: 0.5 * g, gradients))
    pairs.append(jax.tree.map(lambda g: 1.5 * g, gradients))
  expected = common.run(plain, update, means)
  # The averages of optax.MultiSteps mix dtypes, integers and floats.
  with jax.numpy_dtype_promotion("standard"):
    tx = optax.MultiSteps(common.make(name), every_k_schedule=2)
    steps = common.run(tx, jax.jit(tx.update), pairs)
  zeros = jax.tree.map(jnp.zeros_like, common.PARAMS)
  for index, (updates, state) in enumerate(steps):
    if index % 2 == 0:
      chex.assert_trees_all_equal(updates, zeros)
    else:
      plain_updates, plain_state = expected[index // 2]
      chex.assert_trees_all_close(updates, plain_updates, rtol=1e-4, atol=1e-6)
      inner = state.inner_opt_state
      chex.assert_trees_all_close(inner, plain_state, rtol=1e-4, atol=1e-6)


@each_transformation
def test_apply_if_finite_recovers_the_exact_trajectory(name):
  tx = optax.apply_if_finite(common.make(name), max_consecutive_errors=10)
  update = jax.jit(tx.update)
  clean = common.run(tx, update)
  bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.nan), common.GRADIENTS[2])
  worse = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.inf), common.GRADIENTS[0])
  broken = [*common.GRADIENTS[:2], bad, worse, *common.GRADIENTS[2:]]
  steps = common.run(tx, update, broken)
  for updates, _ in steps[2:4]:
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
  for (updates, state), (clean_updates, clean_state) in zip(
    steps[:2] + steps[4:], clean, strict=True
  ):
    chex.assert_trees_all_equal(updates, clean_updates)
    chex.assert_trees_all_equal(state.inner_state, clean_state.inner_state)


def test_curvature_gradients_pass_through_wrappers():
  """A second gradient makes the statistics, also of the unmasked part alone."""
  tx = common.make("scale_by_mbf", damping=1.0)
  wrapped = optax.chain(optax.masked(tx, {"a": True, "b": False}), optax.scale(1.0))
  second = jax.tree.map(jnp.zeros_like, SMALL_PARAMS)
  updates, _ = jax.jit(wrapped.update)(
    SMALL_GRADIENTS[0],
    wrapped.init(SMALL_PARAMS),
    SMALL_PARAMS,
    curvature_gradients=second,
  )
  chex.assert_trees_all_close(updates, SMALL_GRADIENTS[0], rtol=1e-6)
