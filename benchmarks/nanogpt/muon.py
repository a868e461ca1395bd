"""A transformer of two layers beside muon, each at the best of what was tried.

2 layers of width 128, 600 steps of 16 windows of 64 characters of tiny-shakespeare,
50 of them of warm-up, cosine decay to zero. As muon is meant to be run, matrices have a
rate of their own and decoupled decay, everything else has Adam's (with Nesterov's
momentum). ``mbf_adam`` runs in the same way, and as a drop-in at Adam's rate. Seed 0
chooses a setting of each; those after it are reported.

python -m benchmarks.nanogpt.muon --data-dir FOLDER_OF_TINYSHAKESPEARE

The runs are kept in ``results/muon.json``, the seconds of what is reported, timed in
turn, in ``results/muon_seconds.json``; ``--report`` makes the tables anew. ``--beside``
leaves the timing out, for machines that do other work.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import optax

import mbf_optax
from benchmarks import baselines
from benchmarks.nanogpt.training import (
  EVERY,
  Build,
  Setting,
  keep,
  kept,
  made_with,
  seconds_a_step,
  texts,
  train,
)
from benchmarks.paper.report import table

SETTING = Setting(layers=2, batch=16, steps=600)
RATE, WARMUP = 3e-3, 50
DECAY = 0.1
CONSISTENT = 0.2  # Liu et al., 2025: updates as long as Adam's usually are
RESULTS = pathlib.Path(__file__).parent / "results"


def schedule(rate: float) -> optax.Schedule:
  """Up to the rate, and down to zero."""
  return optax.warmup_cosine_decay_schedule(0, rate, WARMUP, SETTING.steps)


def _run_as_muon(
  build: Callable[..., optax.GradientTransformation],
  rate: float,
  other: float = RATE,
  weight_decay: float = DECAY,
  **settings: Any,
) -> optax.GradientTransformation:
  """Matrices with a rate of their own and decay, Adam at another rate for the rest."""
  return build(
    schedule(rate),
    schedule(other),
    weight_decay=weight_decay,
    other_weight_decay=0.0,
    **settings,
  )


muon = functools.partial(_run_as_muon, baselines.muon)
apart = functools.partial(_run_as_muon, baselines.mbf_adam_two_rates)

DROP_INS: Mapping[str, Build] = {
  "adam": lambda: optax.adam(schedule(RATE)),
  "mbf_adam": lambda: mbf_optax.mbf_adam(schedule(RATE)),
}
_SHORTER = {"curvature_ema": 0.95}
_OUTPUTS = {"output_exponent": 0.75}
_muon = functools.partial(muon, 0.04, 0.01)
_faster = functools.partial(muon, 0.04, 0.03)
_apart = functools.partial(apart, 0.01, **_SHORTER, **_OUTPUTS)
_equal = functools.partial(_apart, 0.01)
TRIED: Mapping[str, Mapping[str, Build]] = {
  "muon": {
    "0.01": functools.partial(muon, 0.01),
    "0.02": functools.partial(muon, 0.02),
    "0.04": functools.partial(muon, 0.04),
    "0.08": functools.partial(muon, 0.08),
    "0.04, others 0.01": functools.partial(muon, 0.04, 0.01),
    "0.04, decay 0.3": functools.partial(muon, 0.04, weight_decay=0.3),
    "0.04, beta 0.9": functools.partial(muon, 0.04, beta=0.9),
    "consistent, 0.005": functools.partial(muon, 0.005, consistent_rms=CONSISTENT),
    "consistent, 0.01": functools.partial(muon, 0.01, consistent_rms=CONSISTENT),
    "consistent, 0.02": functools.partial(muon, 0.02, consistent_rms=CONSISTENT),
    "0.02, others 0.01": functools.partial(muon, 0.02, 0.01),
    "0.04, others 0.03": functools.partial(muon, 0.04, 0.03),
    "0.04, others 0.01, beta 0.9": functools.partial(_muon, beta=0.9),
    "0.04, others 0.01, b2 0.95": functools.partial(_muon, b2=0.95),
    "0.04, others 0.01, decay 0.03": functools.partial(_muon, weight_decay=0.03),
    "0.04, others 0.01, beta 0.8": functools.partial(_muon, beta=0.8),
    "0.04, others 0.03, beta 0.9": functools.partial(_faster, beta=0.9),
    "0.04, others 0.03, beta 0.8": functools.partial(_faster, beta=0.8),
    "0.04, others 0.03, b2 0.95": functools.partial(_faster, b2=0.95),
    "0.04, others 0.03, beta 0.9, b2 0.95": functools.partial(
      _faster, beta=0.9, b2=0.95
    ),
    "0.06, others 0.03, beta 0.9": functools.partial(muon, 0.06, 0.03, beta=0.9),
    "0.03, others 0.03, beta 0.9": functools.partial(muon, 0.03, 0.03, beta=0.9),
    "0.04, others 0.06, beta 0.9": functools.partial(muon, 0.04, 0.06, beta=0.9),
    "0.04, others 0.03, beta 0.9, decay 0.2": functools.partial(
      _faster, beta=0.9, weight_decay=0.2
    ),
    "0.04, others 0.03, beta 0.9, decay 0.05": functools.partial(
      _faster, beta=0.9, weight_decay=0.05
    ),
  },
  "mbf_adam, two rates": {
    "0.005": functools.partial(apart, 0.005),
    "0.01": functools.partial(apart, 0.01),
    "0.02": functools.partial(apart, 0.02),
    "0.01, others 0.01": functools.partial(apart, 0.01, 0.01),
    "0.01, decay 0.3": functools.partial(apart, 0.01, weight_decay=0.3),
    "0.01, curvature_ema 0.95": functools.partial(apart, 0.01, **_SHORTER),
    "0.01, output_exponent 0.75": functools.partial(apart, 0.01, **_OUTPUTS),
    "0.01, both of these": _apart,
    "0.005, both of these": functools.partial(apart, 0.005, **_SHORTER, **_OUTPUTS),
    "0.02, both of these": functools.partial(apart, 0.02, **_SHORTER, **_OUTPUTS),
    "0.01, others 0.01, both": _equal,
    "0.01, both, b2 0.95": functools.partial(_apart, b2=0.95),
    "0.01, both, exponent 1": functools.partial(_apart, exponent=1.0),
    "0.01, both, damping 0.03": functools.partial(_apart, damping=0.03),
    "0.01, both, damping 0.3": functools.partial(_apart, damping=0.3),
    "0.01, others 0.03, both": functools.partial(_apart, 0.03),
    "0.01, others 0.01, both, exponent 1": functools.partial(_equal, exponent=1.0),
    "0.01, others 0.01, both, b2 0.95": functools.partial(_equal, b2=0.95),
    "0.01, others 0.01, both, b1 0.95": functools.partial(_equal, b1=0.95),
    "0.01, others 0.01, both, damping 0.03": functools.partial(_equal, damping=0.03),
    "0.01, others 0.01, both, period 5": functools.partial(
      _equal, inverse_update_period=5
    ),
    "0.014, others 0.01, both": functools.partial(
      apart, 0.014, 0.01, **_SHORTER, **_OUTPUTS
    ),
    "0.007, others 0.01, both": functools.partial(
      apart, 0.007, 0.01, **_SHORTER, **_OUTPUTS
    ),
    "0.01, others 0.01, both, decay 0.2": functools.partial(_equal, weight_decay=0.2),
    "0.01, others 0.01, both, decay 0.05": functools.partial(_equal, weight_decay=0.05),
  },
}
"""Settings of the two methods, as many for each, by the rate of the matrices."""

Runs = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
"""Records of trainings by method and setting, then by seed."""


def last(run: Mapping[str, list[float]]) -> float:
  """The validation loss in the end."""
  return run["validation"][-1]


def best(runs: Runs, method: str) -> str:
  """The setting of a method that ends best from seed 0."""
  return min(TRIED[method], key=lambda setting: last(runs[f"{method}, {setting}"]["0"]))


def results(runs: Runs) -> dict[str, np.ndarray]:
  """Last losses of the reported seeds, by what is reported."""
  names = [*DROP_INS, *(f"{method}, {best(runs, method)}" for method in TRIED)]
  return {
    name: np.array([last(run) for seed, run in runs[name].items() if seed != "0"])
    for name in names
  }


def train_all(options: argparse.Namespace) -> None:
  """Trains what is not yet kept, and keeps every run."""
  halves = texts(options.data_dir)
  path = options.out / "muon.json"
  runs: dict[str, Any] = kept(path)
  tries = {f"{m}, {s}": build for m, each in TRIED.items() for s, build in each.items()}

  def trained(builds: Mapping[str, Build], seeds: Iterable[int]) -> None:
    for seed in seeds:
      for name, build in builds.items():
        of_name = runs.setdefault(name, {})
        if str(seed) not in of_name:
          of_name[str(seed)] = train(build, SETTING, halves, seed)
          keep(path, runs)

  trained(tries, [0])
  chosen = [f"{method}, {best(runs, method)}" for method in TRIED]
  reported = DROP_INS | {name: tries[name] for name in chosen}
  trained(reported, range(1, options.seeds + 1))
  if not options.beside:
    keep(options.out / "muon_seconds.json", seconds_a_step(reported, SETTING, halves))


def in_time(runs: Runs, seconds: Mapping[str, float]) -> dict[str, np.ndarray]:
  """Losses of the reported seeds after the time that the fastest training takes."""
  least = min(seconds.values()) * SETTING.steps
  at = EVERY * (1 + np.arange(SETTING.steps // EVERY))
  return {
    name: np.array(
      [
        np.interp(least / a_step, at, run["validation"])
        for seed, run in runs[name].items()
        if seed != "0"
      ]
    )
    for name, a_step in seconds.items()
  }


def report(folder: pathlib.Path) -> str:
  """The page of the runs that are kept in a folder."""
  path = folder / "muon.json"
  runs = kept(path)
  found, seconds = results(runs), kept(folder / "muon_seconds.json")
  timely = in_time(runs, seconds)
  titles = ["optimizer", "validation loss in the end", "in the fastest one's time"]
  titles += ["ms a step", "seeds"]
  rows = [
    [
      name,
      mean_and_error(losses),
      mean_and_error(timely[name]),
      f"{1e3 * seconds[name]:.1f}",
      ", ".join(f"{loss:.3f}" for loss in losses),
    ]
    for name, losses in found.items()
  ]
  tries = ["| tried with seed 0 | validation loss in the end |", "| --- | --- |"]
  for method, settings in TRIED.items():
    names = [f"{method}, {setting}" for setting in settings]
    tries += [f"| {name} | {last(runs[name]['0']):.3f} |" for name in names]
  return (
    "# A transformer of two layers beside muon\n\n2 layers of 128, 600 steps of 16"
    f" windows of 64 characters; {made_with(path)}, two CPU cores; made by"
    " `python -m benchmarks.nanogpt.muon --report`. A number behind a name is the rate"
    f" of the matrices; everything else is at {RATE:g} and decay at {DECAY:g} unless"
    " it says so. The rates as drop-ins are Adam's usual one. Means ± standard errors"
    " over seeds that chose nothing. Trainings ran side by side; steps were timed"
    " apart, in turn. A slower method is read before its schedule has ended there.\n\n"
    f"**mbf_adam's loss less muon's, each at its best of {len(TRIED['muon'])} settings:"
    f" {_ahead(found)}; in the fastest one's time {_ahead(timely)}.**\n\n"
    + "\n".join([table(titles, rows), "", *tries, ""])
  )


def mean_and_error(losses: np.ndarray) -> str:
  """Their mean and its standard error."""
  return f"{losses.mean():.3f} ± {_error(losses):.3f}"


def _ahead(losses: Mapping[str, np.ndarray]) -> str:
  """How far the last method is ahead of the one before it."""
  muons, ours = list(losses.values())[-2:]
  difference = ours.mean() - muons.mean()
  error = np.hypot(_error(muons), _error(ours))
  return f"{difference:+.3f} ({abs(difference) / error:.1f} standard errors)"


def _error(losses: np.ndarray) -> float:
  return losses.std(ddof=1) / np.sqrt(len(losses))


def main() -> None:
  """Trains every contender, unless asked for the report alone, and prints the page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data-dir", type=pathlib.Path, help="of tinyshakespeare.txt")
  parser.add_argument("--seeds", type=int, default=3, help="reported, from 1 on")
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  parser.add_argument(
    "--beside", action="store_true", help="other work runs: no timing"
  )
  parser.add_argument("--report", action="store_true", help="from the kept runs")
  options = parser.parse_args()
  if not options.report:
    train_all(options)
  page = report(options.out)
  (options.out / "muon.md").write_text(page)
  print(page)


if __name__ == "__main__":
  main()
