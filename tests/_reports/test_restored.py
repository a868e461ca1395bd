"""Nothing is lost between saving and going on; a state of another kind is refused."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import mbf_optax
from tests.contract import common

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "tests._reports.resumable"
KILLED_AT = 10  # between checkpoints, between refreshes
TIMEOUT = 280


def start(folder, *killed_at):
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "tests._reports.resumable",
      str(folder),
      *map(str, killed_at),
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, code=0):
  """The lines it printed."""
  try:
    printed, complaints = process.communicate(timeout=TIMEOUT)
  finally:
    process.kill()
  assert process.returncode == code, complaints
  return printed.splitlines()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path):
  """SIGKILL in the middle of training, a checkpoint perhaps half written."""
  whole, killed = start(tmp_path / "whole"), start(tmp_path / "killed", KILLED_AT)
  expected, seen = finish(whole), finish(killed, -signal.SIGKILL)
  assert expected[-1].startswith("params ")
  assert seen == expected[: KILLED_AT + 1]
  resumed = finish(start(tmp_path / "killed"))
  first = int(resumed[0].split()[1])
  assert first in (5, 9)  # the step after a checkpoint
  assert resumed == expected[first:]


PARTITIONS = {
  "full": mbf_optax.flax_partition("full"),
  "shared": mbf_optax.flax_partition("shared"),
  "low_rank": mbf_optax.flax_partition("low_rank", rank=2),
  "other rank": mbf_optax.flax_partition("low_rank", rank=3),
  "one layer": mbf_optax.flax_partition("full", overrides=[("second", "shared")]),
  "elementwise": mbf_optax.flax_partition("full", overrides=[("second", "rms")]),
}
PARAMS = {
  "first": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
  "second": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}
DIFFERENT = [
  ("full", "shared", "first/kernel/statistics", "float32(10, 4)", "float32(1, 4, 4)"),
  ("full", "low_rank", "first/kernel/history", "missing", "float32(4, 2, 4)"),
  (
    "low_rank",
    "other rank",
    "first/kernel/history",
    "float32(4, 2, 4)",
    "float32(4, 3, 4)",
  ),
  (
    "full",
    "one layer",
    "second/kernel/statistics",
    "float32(15, 2)",
    "float32(1, 5, 5)",
  ),
  ("full", "elementwise", "second/bias/second_moment", "missing", "float32(1, 2)"),
  ("elementwise", "full", "second/kernel/statistics", "missing", "float32(15, 2)"),
]


def refused(*parts):
  parts = (*parts, "tx.init(params)")
  return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, parts)))


def make(name, partition):
  return common.make(name, partition=PARTITIONS[partition])


each_name = pytest.mark.parametrize("name", ["mbf", "mbf_adam"])


@each_name
@pytest.mark.parametrize(
  ("old", "new", "path", "has", "should"), DIFFERENT, ids=lambda text: text
)
def test_a_state_of_another_partition_is_refused(name, old, new, path, has, should):
  unlike = "low_rank" in (old, new) or "elementwise" in (old, new)
  if name == "mbf_adam" and unlike:
    pytest.skip("mbf_adam keeps no such state")
  state, tx = make(name, old).init(PARAMS), make(name, new)
  with refused(f"'0/curvature/{path}' is {has}", f"should be {should}"):
    mbf_optax.check_state(tx, state, PARAMS)
  with refused(f"'curvature/{path}' is {has}", f"should be {should}"):
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)


@each_name
def test_other_parameters_and_layouts_are_refused(name):
  tx = make(name, "full")
  state = tx.init(PARAMS)
  narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), PARAMS)
  deeper = {**PARAMS, "third": PARAMS["second"]}
  moment = "0/adam/mu" if name == "mbf_adam" else "0/momentum"
  with refused(f"'{moment}/third/bias' is missing"):
    mbf_optax.check_state(tx, state, deeper)
  with refused(f"'{moment}/third/bias' is float32(2,) but should be absent"):
    mbf_optax.check_state(tx, tx.init(deeper), PARAMS)
  with jax.enable_x64(True), refused("/count' is int32() but should be int64()"):
    wide = jax.eval_shape(lambda: optax.tree.set(state, count=np.int64(0)))
    checked = optax.GradientTransformation(lambda params: wide, tx.update)
    mbf_optax.check_state(checked, state, PARAMS)
  mbf_optax.check_state(tx, state, narrow)


WRAPPERS = {
  "inject_hyperparams": lambda name: optax.inject_hyperparams(common.FACTORIES[name])(
    **common.HYPERPARAMETERS[name]
  ),
  "masked": lambda name: optax.masked(
    common.make(name), {"first": True, "second": False}
  ),
  "multi_steps": lambda name: optax.MultiSteps(common.make(name), 2),
}


@each_name
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_states_inside_wrappers_are_reached(name, wrapper):
  tx = WRAPPERS[wrapper](name)
  state = tx.init(PARAMS)
  mbf_optax.check_state(tx, state, PARAMS)
  narrower = optax.tree.set(state, bias_correction=jnp.zeros(2))
  with refused("/bias_correction' is float32(2,) but should be float32()"):
    mbf_optax.check_state(tx, narrower, PARAMS)


@each_name
@pytest.mark.parametrize("boxed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_metadata_tells_before_anything_is_read(name, boxed, tmp_path):
  """Against orbax itself: the same partition goes on to the bit, another is named."""
  params = PARAMS
  if boxed:
    params = jax.tree.map(
      lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), params
    )
  tx = make(name, "full")
  update = jax.jit(tx.update)
  _, state = update(params, tx.init(params), params)
  with ocp.StandardCheckpointer() as checkpointer:
    path = tmp_path / "checkpoint"
    checkpointer.save(path, {"params": params, "state": state})
    checkpointer.wait_until_finished()
    metadata = checkpointer.metadata(path).item_metadata
    mbf_optax.check_state(tx, metadata["state"], params)
    with refused("curvature/second/kernel/statistics' is float32(15, 2)", "(1, 5, 5)"):
      mbf_optax.check_state(make(name, "one layer"), metadata["state"], params)
    like = {"params": params, "state": jax.eval_shape(tx.init, params)}
    restored = checkpointer.restore(path, like)
  chex.assert_trees_all_equal(restored["state"], state)
  chex.assert_trees_all_equal(
    update(restored["params"], restored["state"], restored["params"]),
    update(params, state, params),
  )
