"""Comparisons choose by one rule, and are the same when they are read again."""

import functools
import json

import numpy as np
import optax
import pytest

from benchmarks.paper import (
  autoencoder,
  cnn,
  comparison,
  graph,
  problems,
  report,
  sequence,
  tables,
)
from benchmarks.paper.comparison import Curve, Outcome
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.search import Search, half_decades, neighbours, untried
from benchmarks.paper.training import Runs, train

QUICK = Options(scale="quick")
pytestmark = pytest.mark.promotes


@pytest.fixture(scope="module")
def task():
  return problems.autoencoder("curves", QUICK)


def adams(*rates):
  """Adam with an open search around rates."""
  settings = [{"learning_rate": rate} for rate in rates]
  ladder = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1e9]
  return Optimizer(optax.adam, settings, ladders={"learning_rate": ladder})


def test_trainings_stop_early_and_report_fewer_seeds(task, tmp_path):
  short = QUICK._replace(work=tmp_path, steps=3, seeds=1)
  one = {"curves": {"adam": Optimizer(optax.adam, [{"learning_rate": 1e-3}])}}
  kept = comparison.experiment(short, "name", {"curves": task}, one, 5, Search())
  found = kept["curves"]["adam"]
  assert found["steps"][-1] == 3 < task.steps
  assert np.shape(found["metrics"]["train loss"])[0] == 1
  longer = short._replace(steps=10 * task.steps, work=tmp_path / "longer")
  kept = comparison.experiment(longer, "name", {"curves": task}, one, 5, Search())
  assert kept["curves"]["adam"]["steps"][-1] == task.steps
  # One setting alone is not trained twice.
  assert len(list((tmp_path / "checkpoints" / "name" / "quick").iterdir())) == 1


def test_what_a_record_has_is_timed_again_and_not_trained(task, tmp_path):
  options = QUICK._replace(work=tmp_path / "first", seeds=2)
  run = functools.partial(
    comparison.experiment, name="name", seeds=2, search=Search(), points=2
  )
  both = {"adam": adams(1e-3, 1e9), "other": adams(1e-2)}
  first = run(options, tasks={"curves": task}, optimizers={"curves": both})
  kept = tmp_path / "kept.json"
  kept.write_text(json.dumps({"facts": {}, **first}))
  options = options._replace(work=tmp_path / "second", known=kept)
  more = {**both, "third": adams(1e-2)}
  second = run(options, tasks={"curves": task}, optimizers={"curves": more})["curves"]
  assert list(second) == list(more)
  trained = (tmp_path / "second" / "checkpoints" / "name" / "quick").iterdir()
  assert all("third" in folder.name for folder in trained)
  for name, outcome in first["curves"].items():
    assert second[name].pop("seconds a step") != outcome.pop("seconds a step")
    assert second[name] == outcome
  stopped = options._replace(steps=3)
  with pytest.raises(ValueError, match=r"--known: curves, adam has .* and 3 here"):
    run(stopped, tasks={"curves": task}, optimizers={"curves": both})
  half = options._replace(bfloat16=True)
  with pytest.raises(ValueError, match=r"--known: .* was made without --bfloat16"):
    run(half, tasks={"curves": task}, optimizers={"curves": both})
  with pytest.raises(ValueError, match=r"kept\.json has no faces"):
    run(options, tasks={"faces": task}, optimizers={"faces": both})


def test_published_settings_are_trained_as_long_as_in_the_paper():
  found = cnn._optimizers("paper", "resnet", cnn.published("resnet"))
  epochs = {name: o.steps / 351 for name, o in found.items()}
  shorter = {"kfac, convolutions (10, 100), warm", "shampoo (10, 100), warm"}
  assert epochs == {name: 100 if name in shorter else 200 for name in found}
  assert not any(o.has_choice for o in found.values())
  assert found["mbf_adam"].settings == found["adam"].settings
  params = {"Conv_0": {"kernel": np.ones((2, 3, 4, 5))}}
  for name, optimizer in found.items():
    assert optimizer.build(**optimizer.settings[0]).init(params), name


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
  # 2.25 - 3 over its error, the root of (2 + 0.125) / 2; seconds are those of Adam.
  assert "| -0.75 (-0.7) | +2.50 (+2.5) " in section
  assert "| 3.00 ± 1.41 |" in section
  assert "2.00, 4.00" in section


def test_records_are_plain_json():
  tree = {"a": np.float32(1.5), "b": [np.array([np.nan, 2.0])], "c": {1: "x"}}
  assert report.plain(tree) == {"a": 1.5, "b": [[None, 2.0]], "c": {"1": "x"}}


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


def test_every_picture_has_colors_enough():
  for starts in (autoencoder._STARTS, cnn._STARTS, sequence.STARTS, graph.STARTS):
    assert len({*map(str, report.colors(starts).values())}) == len(starts)


def test_curves_of_one_picture_have_colors_of_their_own():
  names = ["adam", "mbf full", "mbf", "mbf shared", "mbf_adam"]
  chosen = report.colors(names)
  assert list(chosen) == names
  assert len(set(chosen.values())) == len(names)
  assert chosen["adam"] == report.colors(["x", "adam"])["adam"]
