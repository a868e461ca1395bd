"""The page of the swap benchmark against its records, and the README against both."""

import pathlib
import shutil

import numpy as np
import pytest

from benchmarks.swap import __main__ as command
from benchmarks.swap import report, results, statistics
from benchmarks.swap.problems import HELD_OUT, PROBLEMS

pytestmark = pytest.mark.promotes

RESULTS = pathlib.Path(command.__file__).parent / "results"


def test_the_page_is_made_of_the_kept_runs(tmp_path):
  shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
  assert report.write(tmp_path) == (RESULTS / "swap.md").read_text()


def test_the_readme_shows_the_picture_of_the_page():
  shown = RESULTS.parents[2] / "docs/swap.png"
  assert shown.read_bytes() == (RESULTS / "swap.png").read_bytes()


def test_the_readme_has_the_numbers_of_the_page():
  page = (RESULTS / "swap.md").read_text().split("\n## ")
  steps, seconds, first = page[:3]

  def cells(section, row):
    (line,) = (line for line in section.splitlines() if line.startswith(row))
    numbers = [cell.strip(" *") for cell in line.split("|")]
    return numbers[5:-1]

  mean = "| geometric mean "
  rows = {
    "| 8 held-out problems": cells(steps, f"{mean}        | held out"),
    "| 10 problems": cells(steps, f"{mean}        | tuning"),
    "| worst of all": cells(steps, "| worst"),
    "| training loss of the first": cells(first, f"{mean}        | all"),
    "| all 18": cells(seconds, f"{mean}        | all"),
  }
  readme = (RESULTS.parents[2] / "README.md").read_text()
  for start, expected in rows.items():
    (line,) = (line for line in readme.splitlines() if line.startswith(start))
    assert [cell.strip(" *") for cell in line.split("|")[2:-1]] == expected
  problems = [
    line for line in seconds.splitlines() if line[2:].split(" ")[0] in PROBLEMS
  ]
  ratios = [float(cells(line, "|")[0].split()[0]) for line in problems]
  bold = ["**" in line.split("|")[5] for line in problems]
  behind = sum(ratio > 1 for ratio in ratios)
  clearly = "all" if sum(bold) == behind else sum(bold)
  said = f"behind on {behind} of the 18, on {clearly} of"
  said += f" them by more than two standard errors, up to {max(ratios):.1f} times."
  assert said in readme
  assert bold[ratios.index(max(ratios))]


def test_the_readme_says_what_three_seeds_would():
  groups = statistics.grouped(results.load(RESULTS))
  assert {len(runs) for runs in groups["raw_table"].values()} == {24}

  def of_three(name, quantity):
    ours, adam = (
      {seed: groups[name][optimizer][seed] for seed in range(3)}
      for optimizer in ("mbf_adam", "adam")
    )
    return quantity(ours, adam)

  steps, seconds = (
    of_three("raw_table", quantity)
    for quantity in (statistics.at_equal_steps, statistics.at_equal_seconds)
  )
  mean = statistics.geometric_mean(
    [of_three(name, statistics.at_equal_steps) for name in HELD_OUT]
  )
  said = (
    f"had {steps.value:.2f} ± {steps.error:.2f} of Adam's loss there at equal steps"
  )
  said += (
    f" and {seconds.value:.2f} ± {seconds.error:.2f} at equal seconds, and the mean"
  )
  said += f" of the held-out problems was {mean.value:.3f} ± {mean.error:.3f}."
  assert said in (RESULTS.parents[2] / "README.md").read_text()


def test_the_readme_has_the_returns_of_the_page():
  found = {}
  for section in (RESULTS / "swap.md").read_text().split("\n## PPO, ")[1:]:
    task, *lines = section.splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if "|" in line]
    found[task] = {row[1]: row for row in rows[2:]}

  def cell(task, optimizer):
    row = found[task].get(optimizer)
    return f"{float(row[4].split()[0]):.2f}" if row else "-"

  expected = [
    f"{cell('cartpole', name)}, {cell('pendulum', name)}"
    for name in ("mbf_adam", "soap", "muon", "nadam")
  ]
  readme = (RESULTS.parents[2] / "README.md").read_text()
  (line,) = (line for line in readme.splitlines() if line.startswith("| PPO"))
  assert [cell.strip() for cell in line.split("|")[2:-1]] == expected
  (said,) = (line for line in readme.splitlines() if line.startswith("PPO ("))
  for task, seeds in (("cartpole", 96), ("pendulum", 72)):
    for name in ("adam", "mbf_adam"):
      assert found[task][name][2] == str(seeds)
  returns, costs = (found[task]["mbf_adam"][4] for task in ("cartpole", "pendulum"))
  assert f"{returns} of Adam's return on CartPole" in said
  assert f"{costs} of its cost on Pendulum" in said
  counts = [
    found[task][name][6]
    for task in ("cartpole", "pendulum")
    for name in ("adam", "mbf_adam")
  ]
  assert f"on CartPole {counts[0]} seeds of Adam's end below half" in said
  assert f"return and {counts[1]} of `mbf_adam`'s" in said
  assert f"on Pendulum {counts[2]} and {counts[3]} above twice its cost" in said
  group = statistics.grouped(results.load(RESULTS / "ppo"))["cartpole"]
  ends = [[run["return"] for run in group[n].values()] for n in ("adam", "mbf_adam")]
  below = [sum(end < 0.55 * np.mean(ends[0]) for end in own) for own in ends]
  assert f"({below[0]} and {below[1]} below 0.55 of it)" in said


def test_the_readme_has_the_worst_of_the_first_steps():
  groups = statistics.grouped(results.first_steps(RESULTS))
  shares = report.ratios(groups, statistics.first_steps)
  above = {
    name: (100 * (of_name["mbf_adam"].value - 1), 100 * of_name["mbf_adam"].error)
    for name, of_name in shares.items()
    if of_name["mbf_adam"].value > 1
  }
  assert list(groups) == sorted(PROBLEMS)
  assert sorted(above) == ["graph", "noisy", "perceptron"]
  noisy = "by {:.1f} ± {:.1f} % on `noisy`".format(*above["noisy"])
  perceptron = "by {:.1f} ± {:.1f} % on `perceptron`".format(*above["perceptron"])
  graph = "by {:.2f} ± {:.2f} % on `graph`".format(*above["graph"])
  mean = statistics.geometric_mean([row["mbf_adam"] for row in shares.values()])
  readme = (RESULTS.parents[2] / "README.md").read_text()
  assert f"{noisy}, {perceptron} and {graph}" in readme
  assert f"({mean.value:.3f} ± {mean.error:.3f} from thirty seeds)" in readme
