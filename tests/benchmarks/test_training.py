"""Trainings side by side are what they say, and resume."""

import dataclasses
import types
import unittest.mock

import jax
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks.paper import (
  apart,
  checkpoints,
  comparison,
  problems,
  steps,
  training,
)
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import Optimizer, warm
from benchmarks.paper.training import Runs, Trainer, train

QUICK = Options(scale="quick")
pytestmark = pytest.mark.promotes


@pytest.fixture(scope="module")
def task():
  return problems.autoencoder("curves", QUICK)


def build(learning_rate, damping, inverse):
  return mbf_optax.mbf(learning_rate, damping, inverse_update_period=inverse)


MBF = Optimizer(
  build,
  [
    {"learning_rate": rate, "damping": damping, "inverse": 3.0}
    for rate, damping in ((1e-3, 1e-2), (1e-4, 1e-1))
  ],
  common=("inverse",),
)


def by_hand(task, settings, seeds):
  """Final parameters and losses of a plain loop of jitted steps, run after run."""

  @jax.jit
  def step(rate, damping, params, state, batch):
    tx = build(rate, damping, 3)
    loss, gradient = jax.value_and_grad(
      lambda p: task.loss({"params": p}, batch, jax.random.key(0))[0]
    )(params)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  for setting in settings:
    for seed in seeds:
      rate, damping, _ = setting.values()
      params, losses = task.init(jax.random.key(seed))["params"], []
      state = build(rate, damping, 3).init(params)
      for rows in steps.batch_rows(task, seed, 0, task.steps):
        params, state, loss = step(rate, damping, params, state, task.train[rows])
        losses.append(loss)
      yield params, np.array(losses)


def test_exponents_are_one_minus_the_root_of_persistence(task):
  optimizer = Optimizer(mbf_optax.mbf_adam, [{"learning_rate": 1e-2}])
  runs = train(task, optimizer, seeds=(0, 1), points=2)

  @jax.jit
  def step(params, state, batch):
    gradient = jax.grad(lambda p: task.loss({"params": p}, batch, None)[0])(params)
    return mbf_optax.mbf_adam(1e-2).update(gradient, state, params)

  for seed in (0, 1):
    params = task.init(jax.random.key(seed))["params"]
    state = mbf_optax.mbf_adam(1e-2).init(params)
    for rows in steps.batch_rows(task, seed, 0, task.steps):
      updates, state = step(params, state, task.train[rows])
      params = optax.apply_updates(params, updates)
    for path, layer in mbf_optax.metrics(state, params, params).items():
      found = runs.final(f"exponent of {path}")[0, seed]
      np.testing.assert_allclose(found, layer.exponent, atol=1e-3)
      assert runs.metrics[f"exponent of {path}"][0, seed, 0] == 0


@pytest.mark.parametrize("in_turn", [True, False])
def test_grid_of_settings_and_seeds_is_a_loop_over_them(monkeypatch, in_turn):
  monkeypatch.setattr(apart, "is_faster", lambda: in_turn)
  task = problems.autoencoder("curves", QUICK)
  runs = train(task, MBF, seeds=(3, 4), points=2)
  assert list(runs.at) == [0, 4, 8]
  loop = by_hand(task, MBF.settings, (3, 4))
  for (i, j), (params, losses) in zip(np.ndindex(2, 2), loop, strict=True):
    np.testing.assert_allclose(runs.losses[i, j], losses, rtol=1e-4)
    held_out = task.metrics({"params": params}, task.test)["loss"]
    np.testing.assert_allclose(runs.final("test loss")[i, j], held_out, rtol=1e-4)
  assert not np.allclose(runs.losses[0, 0], runs.losses[0, 1])


def test_an_optimizer_may_train_for_a_number_of_steps_of_its_own(task):
  settings = [{"learning_rate": 1e-3}]
  whole = train(task, Optimizer(optax.adam, settings), points=2)
  shorter = Optimizer(optax.adam, settings, steps=5)
  runs = train(task, shorter, points=2)
  assert list(whole.at) == [0, 4, 8]
  assert list(runs.at) == [0, 3, 5]
  np.testing.assert_allclose(runs.losses, whole.losses[..., :5], rtol=1e-6)


def test_chunks_between_points_change_nothing(task):
  optimizer = Optimizer(optax.adam, [{"learning_rate": 1e-3}])
  whole = train(task, optimizer, points=1)
  for points, chunks, at in ((1, 3, [0, 8]), (2, 2, [0, 4, 8]), (1, 10, [0, 8])):
    runs = train(task, optimizer, points=points, chunks=chunks)
    assert list(runs.at) == at
    np.testing.assert_allclose(runs.losses, whole.losses, rtol=1e-6)
    for name, values in runs.metrics.items():
      assert np.isfinite(values).all()
      np.testing.assert_allclose(values[..., -1], whole.final(name), rtol=1e-6)


def test_no_chunk_is_longer_than_what_may_be_lost(task, monkeypatch):
  lengths, advance = [], training.Trainer.advance

  def recorded(trainer, carry, done, count):
    lengths.append(count)
    return advance(trainer, carry, done, count)

  monkeypatch.setattr(training.Trainer, "advance", recorded)
  monkeypatch.setattr(training, "LONGEST", 3)
  runs = train(task, Optimizer(optax.adam, [{"learning_rate": 1e-3}]), points=2)
  assert lengths == [2, 2, 2, 2]
  assert list(runs.at) == [0, 4, 8]


@pytest.mark.parametrize("steps", [1, 8, 351, 5_000, 10_007, 70_200])
@pytest.mark.parametrize("points", [1, 3, 10])
@pytest.mark.parametrize("chunks", [1, 4])
def test_points_stay_where_they_are_however_chunks_are_cut(steps, points, chunks):
  at, ends = training._ends(steps, points, chunks)
  between = -(-steps // points)
  assert at == [*range(0, steps, between), steps]
  assert ends[-1] == steps
  assert {*at[1:]} <= {*ends}
  lengths = np.diff([0, *ends])
  assert lengths.min() >= 1
  assert lengths.max() <= min(training.LONGEST, -(-between // chunks))


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own(task):
  epochs = steps.batch_rows(task, 0, 0, 12).reshape(2, -1)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(384)] * 2)
  assert not np.array_equal(*epochs)
  assert not np.array_equal(epochs[:1], steps.batch_rows(task, 1, 0, 6).ravel())
  np.testing.assert_array_equal(
    steps.batch_rows(task, 0, 5, 3), steps.batch_rows(task, 0, 0, 8)[5:]
  )


def test_counters_stay_out_of_the_vmaps_and_conditions_stay_conditions(monkeypatch):
  monkeypatch.setattr(apart, "is_faster", lambda: False)
  task = problems.autoencoder("curves", QUICK)
  trainer = Trainer(task, MBF, MBF.settings, (0, 1))
  carry = trainer.start(1).carry
  for state in (carry.state, trainer.advance(carry, 0, 4)[0].state):
    assert state[0].count.shape == ()
    assert state[0].momentum["Dense_0"]["bias"].shape[:2] == (2, 2)
  carry = trainer.start(1).carry
  text = trainer.compiled.chunk.lower(*trainer.arguments(carry, 0, 4)).as_text()
  # Inverses, in them the platform's choice of a method for two orders of matrices and
  # two of triangles; statistics are due at every step.
  assert text.count("stablehlo.case") == 1 + 2 + 2


def test_warm_start_serves_every_setting(task):
  cold = Trainer(task, MBF, MBF.settings, (0, 1)).start(1).carry
  warmed = dataclasses.replace(MBF, prepare=warm)
  carry = Trainer(task, warmed, MBF.settings, (0, 1)).start(1).carry
  np.testing.assert_array_equal(carry.state[0].bias_correction, np.ones((2, 2)))
  np.testing.assert_array_equal(cold.state[0].bias_correction, np.zeros((2, 2)))
  assert carry.state[0].count.shape == ()


def test_resumed_training_equals_an_uninterrupted_one(task, tmp_path):
  whole = train(task, MBF, seeds=(3, 4), points=2)

  class KilledError(Exception):
    pass

  class Fragile(Checkpoint):
    def save(self, step, state, last):
      super().save(step, state, last)
      if step == 4:
        raise KilledError

  fragile = Fragile(tmp_path, resume=False, interval=0)
  with pytest.raises(KilledError):
    train(task, MBF, seeds=(3, 4), points=2, checkpoint=fragile)
  resumed = Checkpoint(tmp_path, resume=True, interval=0)
  rest = train(task, MBF, seeds=(3, 4), points=2, checkpoint=resumed)
  np.testing.assert_array_equal(rest.losses, whole.losses)
  np.testing.assert_array_equal(rest.final("test loss"), whole.final("test loss"))
  assert Checkpoint(tmp_path, resume=False).restore(None) is None


def test_best_setting_is_never_one_that_diverged():
  losses = np.array([[[4, np.nan]], [[4, 3.0]], [[4, np.inf]], [[4, 2.0]], [[4, 5]]])
  valid = np.array([1.0, 3, 2, 4, 9])[:, None, None] * np.ones((1, 1, 2))
  metrics = {"train loss": losses, "valid loss": valid}
  runs = Runs([{}] * 5, losses, np.array([0, 1]), metrics)
  assert runs.best() == 3
  assert runs.best("valid loss") == 1
  assert runs.best("valid loss", largest=True) == 3
  assert runs.diverged()[:, 0].tolist() == [True, False, True, False, True]


def test_trainings_cannot_share_checkpoints(task, tmp_path):
  with comparison.session(QUICK._replace(work=tmp_path), "name", 0) as opened:
    opened.train("label", task, MBF, points=1)
    with pytest.raises(ValueError, match="label: two trainings would share"):
      opened.train("label", task, MBF, points=1)


def test_savings_take_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
  # When it is made, then at every step, and again when one is complete: ten seconds.
  clock = iter([0.0, 30.0, 60.0, 70.0, 140.0, 169.0, 170.0, 171.0, 172.0, 173.0])
  stub = types.SimpleNamespace(monotonic=lambda: next(clock))
  monkeypatch.setattr(checkpoints, "time", stub)
  checkpoint = Checkpoint(tmp_path, resume=False)
  monkeypatch.setattr(checkpoint, "_manager", unittest.mock.Mock())
  for step, last in ((1, False), (2, False), (3, False), (4, False), (5, False)):
    checkpoint.save(step, {}, last)
  checkpoint.save(6, {}, last=True)
  saved = [call.args[0] for call in checkpoint._manager.save.call_args_list]
  assert saved == [2, 5, 6]
