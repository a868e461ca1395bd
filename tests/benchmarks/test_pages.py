"""The experiments' pages, and the README, say what their records have."""

import json
import pathlib
import re

import numpy as np
import pytest

from benchmarks.paper import __main__ as command
from benchmarks.paper import cosine, theorem

RESULTS = pathlib.Path(command.__file__).parent / "results"
pytestmark = pytest.mark.promotes


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


@pytest.mark.parametrize("name", ["adam", "mbf", "adam, bfloat16", "mbf, bfloat16"])
def test_the_page_says_what_the_papers_resnet_came_to(name):
  method, *precision = name.split(", ")
  path = RESULTS / "paper_scale" / f"{'_'.join(['resnet32', *precision])}.json"
  kept = json.loads(path.read_text())["resnet"]
  (found,) = [outcome for key, outcome in kept.items() if key.split()[0] == method]
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
