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
from benchmarks.baselines import Factors, capture
from benchmarks.paper import __main__ as command
from benchmarks.paper import (
  apart,
  autoencoder,
  cnn,
  comparison,
  data,
  frequencies,
  graft,
  graph,
  low_rank,
  problems,
  report,
  rivals,
  sequence,
  steps,
  tables,
  vision,
)
from benchmarks.paper.checkpoints import Checkpoint
from benchmarks.paper.comparison import Curve, Outcome
from benchmarks.paper.curves import curves
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import Optimizer, warm
from benchmarks.paper.optimizers import product, with_factors
from benchmarks.paper.search import Search, half_decades, neighbours, untried
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
  pictures = list(tmp_path.glob("*.png"))
  assert pictures
  assert all(picture.read_bytes()[1:4] == b"PNG" for picture in pictures)


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
  with pytest.raises(ValueError, match=r"sgdd is unknown or missing; name any of mbf"):
    Options(optimizers=["sgdd"]).chosen({"mbf": 2})
  assert Options(only=["b"]).chosen_tasks({"a": 1, "b": 2}) == {"b": 2}
  with pytest.raises(ValueError, match="c is unknown; name any of a, b"):
    Options(only=["c"]).chosen_tasks({"a": 1, "b": 2})
  for option in ("--optimizers", "--only"):
    with pytest.raises(SystemExit):
      command.parse(["theorem", option, "adam"])
    assert f"{option} does not go with cosine" in capsys.readouterr().err


def adams(*rates):
  """Adam with an open search around rates."""
  settings = [{"learning_rate": rate} for rate in rates]
  ladder = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1e9]
  return Optimizer(optax.adam, settings, ladders={"learning_rate": ladder})


def test_a_record_gives_the_same_tables_and_curves(task):
  runs = train(task, adams(1e-3, 1e9), seeds=(0, 1), points=3)
  better = train(task, adams(1e-2), seeds=(0, 1), points=3)
  outcomes = {
    "adam": Outcome(runs, runs.only(0), 0.01, Curve.of(runs.only(0)), ["learning_rate"])
  }
  outcomes["mbf_adam"] = Outcome(runs, better, 0.02, Curve.of(better), [], warm=4)
  after = comparison.restored(report.plain(comparison.record(outcomes)))
  form = {"train loss": "{:.1f}", "test loss": "{:.1f}"}
  made = [tables.comparison_section(each, form) for each in (outcomes, after)]
  assert made[0] == made[1]
  assert "learning_rate 0.001* | 2     | 1 " in made[0]
  np.testing.assert_allclose(
    after["adam"].curve.losses, outcomes["adam"].curve.losses, rtol=1e-3
  )


def test_a_warm_start_counts_as_steps_and_a_difference_is_over_its_error():
  at, none = np.array([0, 10, 20]), np.zeros((0, 0, 0))

  def outcome(losses, seconds, warm=0):
    metrics = {"train loss": np.array([losses], float)}
    runs = Runs([{"learning_rate": 1.0}], none, at, metrics)
    curve = Curve(at, np.array(losses, float))
    return Outcome(runs, runs, seconds, curve, [], warm)

  adam = outcome([[8, 4, 2], [8, 6, 4]], 1.0)
  other = outcome([[8, 3, 1], [8, 3, 2]], 2.0, warm=5)
  np.testing.assert_allclose(adam.at_the_end("train loss"), [2, 4])
  np.testing.assert_allclose(other.at_the_end("train loss"), [2, 2.5])
  np.testing.assert_allclose(other.after_seconds(20, "train loss"), [5.5, 5.5])
  section = tables.comparison_section(
    {"adam": adam, "mbf_adam": other}, {"train loss": "{:.2f}"}
  )
  # Half of 3 - 2.25 and its error, the root of (2 + 0.125) / 2.
  assert "| -0.75 (-0.7) | +2.50 (+2.5) " in section
  assert "| 3.00 ± 1.41 |" in section
  assert "2.00, 4.00" in section


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


def test_every_experiment_has_the_interface():
  for name in command.names():
    assert callable(importlib.import_module(f"benchmarks.paper.{name}").run), name


@pytest.mark.parametrize(
  "optimizers",
  [
    autoencoder._optimizers("cpu"),
    cnn._optimizers("cpu", "resnet"),
    frequencies.optimizers(frequencies.STARTS["mnist"], "cpu"),
    graft._optimizers("cpu", "resnet"),
    graph.optimizers(graph.SIZES["cpu"]),
    low_rank._optimizers("cpu", "narrow"),
    low_rank._optimizers("cpu", "wide"),
    sequence.optimizers(sequence.SIZES["cpu"]),
  ],
  ids=["autoencoder", "cnn", "frequencies", "graft", "graph", "narrow", "wide", "text"],
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
  optimizer = rivals.optimizer("kfac (1, 20), warm", product(learning_rate=[0.1]))
  state = Trainer(task, optimizer, optimizer.settings, (3,)).start(1).carry.state[0]
  np.testing.assert_array_equal(state.weight, [[1.0]])
  rows = task.train[steps.batch_rows(task, 3, 0, 40).ravel()]
  inputs = np.hstack([rows.reshape(len(rows), -1), np.ones((len(rows), 1))])
  found = state.factors["Dense_0"].inputs[0, 0]
  np.testing.assert_allclose(found, inputs.T @ inputs / len(rows), atol=1e-5)


def test_shampoo_starts_from_the_mean_moments_of_a_pass(task):
  optimizer = rivals.optimizer("shampoo (1, 20), warm", product(learning_rate=[0.1]))
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
  losses = np.array([[[4, np.nan]], [[4, 3.0]], [[4, np.inf]], [[4, 2.0]], [[4, 5]]])
  valid = np.array([1.0, 3, 2, 4, 9])[:, None, None] * np.ones((1, 1, 2))
  metrics = {"train loss": losses, "valid loss": valid}
  runs = Runs([{}] * 5, losses, np.array([0, 1]), metrics)
  assert runs.best() == 3
  assert runs.best("valid loss") == 1
  assert runs.best("valid loss", largest=True) == 3
  assert runs.diverged()[:, 0].tolist() == [True, False, True, False, True]


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


def test_a_search_tries_every_neighbour_of_its_best(task, tmp_path):
  search = Search("valid loss", seeds=2)
  with comparison.session(QUICK._replace(work=tmp_path), "name", 0) as opened:
    outcome = comparison.compare(task, {"adam": adams(1e-4)}, 2, opened, search)["adam"]
  tried = [setting["learning_rate"] for setting in outcome.search.settings]
  # From the first setting up, one by one, to where a step further does not help.
  assert tried[:3] == [1e-4, 1e-5, 1e-3]
  best = outcome.setting["learning_rate"]
  losses = outcome.search.final("valid loss").mean(-1)
  assert best == tried[int(np.nanargmin(losses))]
  assert outcome.untried == []
  ladder = adams().ladders["learning_rate"]
  place = ladder.index(best)
  assert {*ladder[place - 1 : place + 2]} <= {*tried}
  assert len(tried) == len({*tried})
  unseen = train(task, adams(best), seeds=(2, 3))
  np.testing.assert_allclose(outcome.runs.losses, unseen.losses, rtol=1e-6)
  alone = train(task, adams(best), seeds=(0, 1), points=1)
  np.testing.assert_allclose(
    outcome.search.final("valid loss")[tried.index(best)],
    alone.final("valid loss")[0],
    rtol=1e-6,
  )


def test_neighbours_that_were_not_tried_are_named():
  ladders = {"a": (1.0, 3.0, 10.0), "b": (0.5, 0.9)}
  start = {"a": 1.0, "b": 0.9}
  near = [{"a": 3.0, "b": 0.9}, {"a": 1.0, "b": 0.5}]
  assert neighbours(start, ladders) == near
  assert untried(start, near, ladders) == ["a", "b"]  # both at an end
  inner = {"a": 3.0, "b": 0.9}
  around = neighbours(inner, ladders)
  assert untried(inner, around, {"a": ladders["a"]}) == []
  assert untried(inner, around[1:], {"a": ladders["a"]}) == ["a"]
  assert half_decades(3e-3, 1) == (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


def test_data_to_choose_by_is_neither_trained_on_nor_reported(task):
  assert len(task.train) == 384
  assert len(task.valid) == 43
  rows = [{row.tobytes() for row in part} for part in (task.train, task.valid)]
  assert not rows[0] & rows[1]


def test_shrinkage_and_ratio_are_what_the_rate_makes_of_them():
  settings = [{"ratio": 0.1, "damping": 0.5, "shrinkage": 0.01}]
  tx = rivals.optimizer("mbf", settings).build(**settings[0])
  one = {"kernel": jnp.ones((2, 2))}
  zero = jax.tree.map(jnp.zeros_like, one)
  updates, _ = tx.update(zero, tx.init(one), one)
  np.testing.assert_allclose(updates["kernel"], -0.01, rtol=1e-5)
  updates, _ = tx.update(one, tx.init(one), zero)
  alone = mbf_optax.mbf(0.1 * 0.5, 0.5)
  expected, _ = alone.update(one, alone.init(one), zero)
  np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-5)


def test_kfacs_gradient_is_the_losss_and_its_factors_are_of_sampled_targets():
  task = problems.convnet(QUICK)
  variables = task.init(jax.random.key(0))
  batch = jax.tree.map(lambda x: x[:8], task.train)
  key = jax.random.key(3)

  def both(params):
    value, _, gradient, extra = with_factors(task, {"params": params}, batch, key)
    return value, gradient, extra["factors"]()

  value, gradient, factors = jax.jit(both)(variables["params"])
  expected = jax.value_and_grad(lambda p: task.loss({"params": p}, batch, key)[0])(
    variables["params"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    (value, gradient),
    expected,
  )
  sampled = capture(
    lambda p: task.sampled_loss({"params": p}, batch, key), variables["params"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    factors,
    sampled.factors,
  )


def test_trainings_cannot_share_checkpoints(task, tmp_path):
  with comparison.session(QUICK._replace(work=tmp_path), "name", 0) as opened:
    opened.train("label", task, MBF, points=1)
    with pytest.raises(ValueError, match="label: two trainings would share"):
      opened.train("label", task, MBF, points=1)
