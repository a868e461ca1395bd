"""The command line of the experiments."""

import importlib
import json

import pytest

from benchmarks.paper import __main__ as command
from benchmarks.paper.experiment import Options

LIGHT = ["sensitivity", "autoencoder"]
pytestmark = pytest.mark.promotes


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


def test_every_experiment_has_the_interface():
  for name in command.names():
    module = importlib.import_module(f"benchmarks.paper.{name}")
    assert callable(module.run), name
    assert callable(module.of_record), name


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
