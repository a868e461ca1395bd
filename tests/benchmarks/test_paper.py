"""The paper's experiments run, and their trainings are what they say."""

import dataclasses
import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks.baselines import Factors
from benchmarks.paper import __main__ as command
from benchmarks.paper import (
  apart,
  comparison,
  data,
  graft,
  graph,
  low_rank,
  problems,
  report,
  steps,
  vision,
)
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.comparison import Curve, Outcome
from benchmarks.paper.curves import curves
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import Optimizer, warm
from benchmarks.paper.optimizers import OPTIMIZERS, product
from benchmarks.paper.training import Runs, Trainer, train

QUICK = Options(scale="quick")
LIGHT = ["sensitivity", "autoencoder"]
RESULTS = pathlib.Path(command.__file__).parent / "results"

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


@pytest.mark.parametrize("name", LIGHT)
def test_experiment_runs_and_writes_its_report(name, tmp_path, capsys):
  command.main([name, "--scale", "quick", "--work", str(tmp_path)])
  text = (tmp_path / f"{name}.md").read_text()
  assert f"python -m benchmarks.paper {name} --scale quick" in text
  assert "jax " in text
  assert text.strip() in capsys.readouterr().out
  assert json.loads((tmp_path / f"{name}.json").read_text())["facts"]
  assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("name", [path.stem for path in RESULTS.glob("*.json")])
def test_the_tables_of_a_page_are_those_of_its_record(name, tmp_path):
  page = RESULTS / f"{name}.md"
  kept = str(page.with_suffix(".json"))
  command.main([name, "--kept", kept, "--work", str(tmp_path)])
  made = (tmp_path / f"{name}.md").read_text()
  rows = [line for line in made.splitlines() if line.startswith("|")]
  assert len(rows) > 10
  assert not set(rows) - set(page.read_text().splitlines())


def test_optimizers_are_chosen_by_names_that_exist(capsys):
  all_of_them = {"adam": 1, "mbf": 2, "muon": 3}
  chosen = Options(optimizers=["mbf", "adam"]).chosen(all_of_them)
  assert chosen == {"adam": 1, "mbf": 2}
  assert Options().chosen(all_of_them) == all_of_them
  for wrong, named in ((["adam", "sgdd"], "sgdd"), (["mbf"], "adam")):
    with pytest.raises(ValueError, match=f"{named} is unknown or missing"):
      Options(optimizers=wrong).chosen(all_of_them)
  with pytest.raises(SystemExit):
    command.parse(["theorem", "--optimizers", "adam"])
  assert "--optimizers goes with autoencoder or cnn" in capsys.readouterr().err


def test_a_record_gives_the_same_tables_and_curves(task):
  adam = OPTIMIZERS["adam"](product(learning_rate=[1e-3, 1e9]))
  runs = train(task, adam, seeds=(0, 1), points=3)
  best = runs.only(0)
  before = {"adam": Outcome(runs, best, 0.01, Curve.of(best))}
  after = comparison.restored(report.plain(comparison.record(before)))
  form = {"train loss": "{:.1f}", "test loss": "{:.1f}"}
  tables = [comparison.comparison_table(each, form) for each in (before, after)]
  assert tables[0] == tables[1]
  np.testing.assert_allclose(
    after["adam"].curve.losses, before["adam"].curve.losses, rtol=1e-5
  )


def test_every_experiment_has_the_interface():
  for name in command.names():
    assert callable(importlib.import_module(f"benchmarks.paper.{name}").run), name


@pytest.mark.parametrize(
  "optimizers",
  [
    graft._optimizers("cpu", decay=0.1),
    graph.optimizers(graph.SIZES["cpu"]),
    low_rank._optimizers("cpu", "narrow"),
    low_rank._optimizers("cpu", "wide"),
  ],
  ids=["graft", "graph", "narrow", "wide"],
)
def test_optimizers_that_the_quick_scale_leaves_out_take_their_settings(optimizers):
  """Traced, as in a training, but not compiled."""
  params = {"Dense_0": {"bias": jnp.zeros(5), "kernel": jnp.zeros((4, 5))}}
  factors = {"Dense_0": Factors(jnp.eye(5), jnp.eye(5))}

  def updated(build, setting):
    tx = optax.with_extra_args_support(build(**setting))
    return tx.update(params, tx.init(params), params, factors=factors)[0]

  for name, optimizer in optimizers.items():
    setting = {key: jnp.float32(value) for key, value in optimizer.settings[0].items()}
    found = jax.eval_shape(functools.partial(updated, optimizer.build), setting)
    shapes = jax.tree.map(jnp.shape, found)
    assert shapes == jax.tree.map(jnp.shape, params), name


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
  assert (
    comparison.work(task, {"adam": shorter}, 3, comparison.Search(seeds=2)) == 5 * 5
  )


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


def test_paper_scale_has_the_papers_epochs_and_decays():
  for name, batches in (("resnet", 390), ("vgg16", 390), ("vgg11", 572)):
    found = [
      (length.steps / batches, length.decay_every / batches)
      for length in vision.lengths(name, "paper")
    ]
    mini_block = (200, 60) if name == "resnet" else (150, 50)
    assert found == [(200, 40), mini_block, (100, 80 if name == "resnet" else 60)]


def test_rates_fall_to_a_tenth_after_every_so_many_steps():
  tx = vision.decaying(optax.sgd, 2)(learning_rate=1.0)
  one = jnp.ones(())
  state, moved = tx.init(one), []
  for _ in range(5):
    update, state = tx.update(one, state)
    moved.append(update)
  np.testing.assert_allclose(moved, [-1, -1, -0.1, -0.1, -0.01], rtol=1e-5)


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
  # Inverses, in them the platform's choice of a method for matrices of two orders;
  # statistics are due at every step.
  assert text.count("stablehlo.case") == 1 + 2


def test_warm_start_serves_every_setting(task):
  cold = Trainer(task, MBF, MBF.settings, (0, 1)).start(1).carry
  warmed = dataclasses.replace(MBF, prepare=warm)
  carry = Trainer(task, warmed, MBF.settings, (0, 1)).start(1).carry
  np.testing.assert_array_equal(carry.state[0].bias_correction, np.ones((2, 2)))
  np.testing.assert_array_equal(cold.state[0].bias_correction, np.zeros((2, 2)))
  assert carry.state[0].count.shape == ()


def test_kfac_starts_from_the_mean_factors_of_a_pass(task):
  optimizer = OPTIMIZERS["kfac"](product(learning_rate=[0.1]))
  state = Trainer(task, optimizer, optimizer.settings, (3,)).start(1).carry.state[0]
  np.testing.assert_array_equal(state.weight, [[1.0]])
  rows = task.train[steps.batch_rows(task, 3, 0, 40).ravel()]
  inputs = np.hstack([rows.reshape(len(rows), -1), np.ones((len(rows), 1))])
  found = state.factors["Dense_0"].inputs[0, 0]
  np.testing.assert_allclose(found, inputs.T @ inputs / len(rows), atol=1e-5)


def test_shampoo_starts_from_the_mean_moments_of_a_pass(task):
  optimizer = OPTIMIZERS["shampoo"](product(learning_rate=[0.1]))
  start = Trainer(task, optimizer, optimizer.settings, (3,)).start(1).carry
  state, variables = jax.tree.map(lambda x: x[0, 0] if x.ndim else x, start)[::-1]
  np.testing.assert_array_equal(state[0].weight, 1.0)
  loss = lambda p, rows: task.loss({"params": p}, task.train[rows], None)[0]  # noqa: E731
  gradients = [
    jax.grad(loss)(variables["params"], rows)["Dense_0"]["kernel"]
    for rows in steps.batch_rows(task, 3, 0, 40)
  ]
  moments = np.mean([g @ g.T for g in gradients], 0)
  found = state[0].statistics["Dense_0/kernel"][0]
  np.testing.assert_allclose(found, moments, rtol=1e-4, atol=1e-8)


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
  losses = np.array([[[np.nan]], [[3.0]], [[np.inf]], [[2.0]]])
  runs = Runs([{}] * 4, losses, np.array([1]), {"train loss": losses})
  assert runs.best() == 3
  assert runs.best(largest=True) == 1


def test_curves_lie_inside_the_frame_and_repeat():
  images = curves(40, seed=1)
  assert images.shape == (40, 28, 28)
  assert 0 <= images.min() < 0.01
  assert 0.9 < images.max((1, 2)).min() <= images.max() <= 1
  frame = np.ones((28, 28), bool)
  frame[1:-1, 1:-1] = False
  assert images[:, frame].max() < 0.15
  np.testing.assert_array_equal(images, curves(40, seed=1))
  assert not np.allclose(images, curves(40, seed=2))


def test_halving_averages_four_pixels():
  images = data.images("mnist", QUICK)
  half = data.halved(images)
  assert half.x_train.shape[1:] == (14, 14, 1)
  np.testing.assert_allclose(
    half.x_test[:, 2, 5], images.x_test[:, 4:6, 10:12].mean((1, 2)), rtol=1e-6
  )


def test_augmentation_flips_and_shifts():
  batch = np.zeros((64, 9, 9, 1), np.float32)
  batch[:, 3, 6] = 1
  out = np.asarray(
    jax.jit(functools.partial(data.augment, pad=1))(jax.random.key(0), batch)
  )
  rows, columns = np.nonzero(out[..., 0].any(0))
  assert set(rows) == {2, 3, 4}
  assert set(columns) == {1, 2, 3, 5, 6, 7}
  np.testing.assert_array_equal(out.sum((1, 2, 3)), 1)


@pytest.mark.parametrize("load", [data.faces, data.text, data.cora])
def test_missing_data_is_named_with_a_remedy(load, tmp_path):
  with pytest.raises(SystemExit, match=r"is not in .*--extra-data"):
    load(Options(scale="cpu", extra_data=tmp_path))


def test_records_are_plain_json():
  tree = {"a": np.float32(1.5), "b": [np.array([np.nan, 2.0])], "c": {1: "x"}}
  assert report.plain(tree) == {"a": 1.5, "b": [[None, 2.0]], "c": {"1": "x"}}


def test_curves_of_one_picture_have_colors_of_their_own():
  names = ["adam", "mbf full", "mbf", "mbf shared", "mbf_adam"]
  chosen = report.colors(names)
  assert list(chosen) == names
  assert len(set(chosen.values())) == len(names)
  assert chosen["adam"] == report.colors(["x", "adam"])["adam"]


def test_finals_choose_among_the_best_of_the_search(task, tmp_path):
  rates = product(learning_rate=[1e-3, 1e-2, 1e-4])
  search = comparison.Search(seeds=1, finalists=2, final_seeds=3)
  adam = {"adam": Optimizer(optax.adam, rates)}
  total = comparison.work(task, adam, 1, search)
  with comparison.session(QUICK._replace(work=tmp_path), "name", total) as opened:
    outcome = comparison.compare(task, adam, 1, opened, search)["adam"]
    assert opened.bar.n == total
  order = outcome.search.final("train loss")[:, 0].argsort()
  finals = [train(task, adam["adam"], [rates[i]], seeds=(1, 2, 3)) for i in order[:2]]
  losses = [runs.final("train loss").mean() for runs in finals]
  assert outcome.setting == rates[order[np.argmin(losses)]]
  unseen = train(task, adam["adam"], [outcome.setting], seeds=(4,))
  np.testing.assert_allclose(outcome.runs.losses, unseen.losses, rtol=1e-6)


def test_trainings_cannot_share_checkpoints(task, tmp_path):
  with comparison.session(QUICK._replace(work=tmp_path), "name", 0) as opened:
    opened.train("label", task, MBF, points=1)
    with pytest.raises(ValueError, match="label: two trainings would share"):
      opened.train("label", task, MBF, points=1)
