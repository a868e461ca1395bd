"""Reinforcement learning of the swap benchmark, and its environments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.swap import environments, ppo, report, runs
from benchmarks.swap.optimizers import OPTIMIZERS

pytestmark = pytest.mark.promotes


@pytest.mark.parametrize("name", ppo.TASKS)
def test_ppo(tmp_path, name):
  task = ppo.TASKS[name]._replace(rollout=256, epochs=1, batch=512, steps=2048)
  adam = "adam", OPTIMIZERS["adam"]
  assert runs.reinforce((name, task), adam, [0, 1], tmp_path) == [0, 1]
  assert runs.reinforce((name, task), adam, [0, 1], tmp_path) == []
  found = json.loads((tmp_path / f"ppo/{name}/adam-0.json").read_text())
  low, high = {"cartpole": (8, 60), "pendulum": (-2000, -500)}[name]
  assert low < found["return"] < high  # as a policy that acts at random
  assert f"PPO, {name}" in report.write(tmp_path)


def test_advantages_against_a_loop():
  task = ppo.TASKS["pendulum"]
  rng = np.random.default_rng(0)
  reward, value = rng.normal(size=(2, 6, 2))
  ended = rng.random((6, 2)) < 0.3
  last = rng.normal(size=2)
  nothing = jnp.zeros((6, 2))
  rollout = ppo.Rollout(
    nothing, nothing, nothing, *map(jnp.asarray, (value, reward, ended)), nothing
  )
  advantage = ppo._targets(task, rollout, jnp.asarray(last))[3].reshape(6, 2)
  values = np.concatenate([value, last[None]])
  for copy in range(2):
    for start in range(6):
      total, weight = 0.0, 1.0
      for t in range(start, 6):
        after = 0.0 if ended[t, copy] else task.discount * values[t + 1, copy]
        total += weight * (reward[t, copy] + after - value[t, copy])
        weight *= task.discount * ppo.LAMBDA
        if ended[t, copy]:
          break
      np.testing.assert_allclose(advantage[start, copy], total, rtol=1e-4, atol=1e-5)


def test_pendulum_keeps_its_energy_without_torque():
  environment = environments.ENVIRONMENTS["pendulum"]
  step = jax.jit(environment.step)
  state, energies = jnp.array([3.0, 0.0]), []
  for _ in range(200):
    state, reward, failed = step(state, jnp.zeros(1))
    energies.append(float(state[1] ** 2 / 2 + 15 * jnp.cos(state[0])))
    assert reward <= 0
    assert not failed
  assert np.ptp(energies) < 0.5  # of 30 between the top and the bottom


def test_cartpole_falls_without_control():
  step = jax.jit(environments.ENVIRONMENTS["cartpole"].step)
  state, steps, failed = jnp.array([0.0, 0.0, 0.01, 0.0]), 0, False
  while not failed:
    state, reward, failed = step(state, jnp.int32(1))
    steps += 1
    assert reward == 1
  assert 8 <= steps <= 12  # pushed to one side without an end it falls in ten steps
  assert state[2] < 0
