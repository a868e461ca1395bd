"""The experiments run, choose by one rule, and keep records that make their pages."""

import functools
import importlib
import json
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import models
from benchmarks.paper import __main__ as command
from benchmarks.paper import (
  autoencoder,
  cnn,
  comparison,
  cosine,
  data,
  graph,
  problems,
  report,
  sequence,
  tables,
  tasks,
  theorem,
)
from benchmarks.paper.comparison import Curve, Outcome
from benchmarks.paper.curves import curves
from benchmarks.paper.experiment import Options
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.search import Search, half_decades, neighbours, untried
from benchmarks.paper.training import Runs, train
from examples.data import Data

QUICK = Options(scale="quick")
LIGHT = ["sensitivity", "autoencoder"]
RESULTS = pathlib.Path(command.__file__).parent / "results"
pytestmark = pytest.mark.promotes


@pytest.fixture(scope="module")
def task():
  return problems.autoencoder("curves", QUICK)


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
  assert len(rows) > (7 if name == "sensitivity" else 10)  # it has one small table
  assert not set(rows) - set(page.read_text().splitlines())


def test_the_page_says_what_an_epoch_at_the_papers_scale_came_to():
  kept = json.loads((RESULTS / "paper_scale" / "cnn.json").read_text())["resnet"]
  page = (RESULTS / "cnn.md").read_text()
  for name, outcome in kept.items():
    loss = outcome["curve"]["losses"][0][-1]
    accuracy = 100 * outcome["metrics"]["test accuracy"][0][-1]
    assert f"| {name:19} | {loss:<27.2f} | {accuracy:.1f} %" in page


@pytest.mark.parametrize("name", ["adam", "mbf"])
def test_the_page_says_what_the_papers_resnet_came_to(name):
  path = RESULTS / "paper_scale" / "resnet32.json"
  kept = json.loads(path.read_text())["resnet"]
  (found,) = [outcome for key, outcome in kept.items() if key.split()[0] == name]
  epochs = [round(step / 351) for step in found["steps"]]
  assert epochs == list(range(0, 20 * len(epochs), 20))
  (line,) = re.findall(
    rf"^\| {name} +\|([ .\d|]+)\|$", (RESULTS / "cnn.md").read_text(), re.MULTILINE
  )
  said = [float(cell) for cell in line.split("|") if cell.strip()]
  accuracies = found["metrics"]["test accuracy"][0][1:]
  np.testing.assert_allclose(said, [100 * a for a in accuracies], atol=0.051)


def test_the_readme_says_what_the_small_resnet_came_to():
  kept = json.loads((RESULTS / "cnn.json").read_text())["resnet"]

  def percent(name):
    final = [seed[-1] for seed in kept[name]["metrics"]["test accuracy"]]
    return f"{100 * np.mean(final):.1f}"

  said = f"`mbf_adam` has {percent('mbf_adam')} % of the held-out images, muon"
  said += (
    f" {percent('muon')}, SOAP {percent('soap')}, Adam {percent('adam')}, and K-FAC"
  )
  said += ", at seven times the time a step"
  said += f", {percent('kfac, convolutions (1, 2)')} ("
  assert said in (RESULTS.parents[2] / "README.md").read_text()
  seconds = [
    kept[name]["seconds a step"] for name in ("kfac, convolutions (1, 2)", "mbf_adam")
  ]
  assert seconds[0] / seconds[1] == pytest.approx(7, abs=0.5)


def test_records_of_different_tasks_make_one_page(tmp_path):
  whole = json.loads((RESULTS / "sequence.json").read_text())
  facts = whole.pop("facts")
  parts = []
  for task, outcomes in whole.items():
    parts.append(tmp_path / f"{task}.json")
    here = {**facts, "time": f"{len(parts)} minutes"}
    parts[-1].write_text(json.dumps({"facts": here, task: outcomes}))
  found, record = command.joined(parts)
  assert record == whole
  assert found == {**facts, "time": "1 minutes; 2 minutes"}
  with pytest.raises(ValueError, match=r"--kept: .*gru.json has gru, and so has"):
    command.joined([*parts, parts[-1]])


def test_optimizers_are_chosen_by_names_that_exist(capsys):
  all_of_them = {"adam": 1, "mbf": 2, "muon": 3}
  chosen = Options(optimizers=["mbf", "adam"]).chosen(all_of_them, ["adam"])
  assert chosen == {"adam": 1, "mbf": 2}
  assert Options().chosen(all_of_them) == all_of_them
  for wrong, named in ((["adam", "sgdd"], "sgdd"), (["mbf"], "adam")):
    with pytest.raises(ValueError, match=f"{named} is unknown or missing"):
      Options(optimizers=wrong).chosen(all_of_them, ["adam"])
  with pytest.raises(ValueError, match=r"sgdd is unknown or missing; name any of mbf"):
    Options(optimizers=["sgdd"]).chosen({"mbf": 2})
  assert Options(only=["b"]).chosen_tasks({"a": 1, "b": 2}) == {"b": 2}
  with pytest.raises(ValueError, match="c is unknown; name any of a, b"):
    Options(only=["c"]).chosen_tasks({"a": 1, "b": 2})
  for option in ("--optimizers", "--only"):
    with pytest.raises(SystemExit):
      command.parse(["theorem", option, "adam"])
    assert f"{option} does not go with cosine" in capsys.readouterr().err


def test_options_that_do_not_fit_are_refused(capsys):
  wrong = {
    "theorem --seeds 2": "--seeds does not go with cosine",
    "sensitivity --steps 2": "--steps does not go with cosine",
    "cnn --published": "--published goes with cnn --scale paper alone",
    "graph --scale paper --published": "--published goes with cnn",
    "cnn --steps 0": "argument --steps: 0 is not at least 1",
    "graph --bfloat16": "--bfloat16 goes with cnn alone",
  }
  for line, named in wrong.items():
    with pytest.raises(SystemExit):
      command.parse(line.split())
    assert named in capsys.readouterr().err
  line = "cnn --scale paper --only resnet --published --bfloat16 --seeds 3 --steps 9"
  line += " --known a"
  options = command.parse(line.split()).options
  assert (options.published, options.seeds, options.steps) == (True, 3, 9)
  assert f"`python -m benchmarks.paper {line}`" in str(
    command._facts("cnn", options, 1.0)
  )


def test_networks_in_half_precision():
  """Their products; not parameters, gradients, averages, losses or metrics."""
  x = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
  y = np.arange(40, dtype=np.int32) % 10
  images, model = Data(x, y, x, y), models.ResNet(8, width=2)
  half = tasks.classification("half", model, images, 4, 1, dtype=jnp.bfloat16)
  whole = tasks.classification("whole", model, images, 4, 1)
  variables, key = half.init(jax.random.key(0)), jax.random.key(1)
  batch = images.x_train[:4], images.y_train[:4]

  def gradient(task, params):
    def loss(params):
      return task.loss({**variables, "params": params}, batch, key)

    return jax.value_and_grad(loss, has_aux=True)(params)

  found = gradient(half, variables["params"]), half.metrics(variables, batch)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  expected = gradient(whole, variables["params"]), whole.metrics(variables, batch)
  chex.assert_trees_all_close(found[0], expected[0], rtol=0.2, atol=0.1)
  program = jax.make_jaxpr(functools.partial(gradient, half))(variables["params"])
  products = re.findall(r":(\w+)\[[\d,]+\] = conv_general_dilated", str(program))
  assert len(products) > 6
  assert {*products} == {"bf16"}


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
  # 2.25 - 3 over its error, the root of (2 + 0.125) / 2; seconds are those of Adam.
  assert "| -0.75 (-0.7) | +2.50 (+2.5) " in section
  assert "| 3.00 ± 1.41 |" in section
  assert "2.00, 4.00" in section


def test_every_experiment_has_the_interface():
  for name in command.names():
    module = importlib.import_module(f"benchmarks.paper.{name}")
    assert callable(module.run), name
    assert callable(module.of_record), name


def test_what_diverged_is_no_number_in_the_studies_tables():
  def kept(name):
    return json.loads((RESULTS / f"{name}.json").read_text())

  record = kept("cosine")
  path = record[cosine.EXAMPLES]["1e-05"]
  path["last loss"] = None
  path["mean cosines"] = {name: [None] * 4 for name in path["mean cosines"]}
  text = cosine.of_record(record).text
  assert "| nan / nan |" in text
  assert "| inf " in text
  record = kept("theorem")
  record["sweeps"]["width"]["ball"][0] = None
  assert re.search(r"\| width +\| 32 +\| [^|]+ \| nan ", theorem.of_record(record).text)


def test_every_picture_has_colors_enough():
  for starts in (autoencoder._STARTS, cnn._STARTS, sequence.STARTS, graph.STARTS):
    assert len({*map(str, report.colors(starts).values())}) == len(starts)


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
