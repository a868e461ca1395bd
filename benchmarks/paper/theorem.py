"""Theorem 1: the idealized method's loss falls at least as ``(1 - eta)^k``.

The theorem's setting on scikit-learn's digits, one departure from its assumptions at a
time, and what its second assumption asks of a network's width and output scale.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np

from benchmarks.paper.experiment import Options, Report
from benchmarks.paper.report import axes, numbers, plain, table
from benchmarks.paper.studies.idealized import Case, Network, Outcome, measure

LAZY = 2e7  # an output scale at which the network is close to its linearisation


class Size(NamedTuple):
  """How large and how long.

  Attributes:
    width: of the hidden layers.
    examples: fewer than a block has weights.
    many: examples, more than a block has weights.
    steps: at most.
    cases: how many are run.
    widths: to measure the second assumption at.
    scales: of the output, the same.
  """

  width: int
  examples: int
  many: int
  steps: int
  cases: int
  widths: list[float]
  scales: list[float]


SIZES = {
  "quick": Size(16, 8, 12, 4, 5, [16], [1.0]),
  "cpu": Size(
    64, 16, 96, 300, 13, [32, 64, 128, 256], [0.1, 1.0, 10.0, 1e3, 1e5, 1e7, 1e8]
  ),
  "paper": Size(
    512, 40, 256, 2000, 13, [64, 256, 1024, 4096], [0.1, 1.0, 10.0, 1e3, 1e5, 1e7, 1e8]
  ),
}


def run(options: Options) -> Report:
  """Theorem 1 as an experiment."""
  size = SIZES[options.scale]
  named = cases(size)[: size.cases]
  with jax.enable_x64(True):
    outcomes = {case.name: measure(case, size.steps) for case in named}
    sweeps = {"width": by_width(size), "output scale": by_scale(size)}
  cases_kept = {name: _record(outcome) for name, outcome in outcomes.items()}
  return of_record(plain({"cases": cases_kept, "sweeps": sweeps}))


def of_record(record: Mapping[str, Any]) -> Report:
  """The report of outcomes that were kept."""
  kept = {name: _restored(case) for name, case in record["cases"].items()}
  sweeps = {
    name: Sweep(*numbers([*sweep.values()]).tolist())
    for name, sweep in record["sweeps"].items()
  }
  text = f"{_FACTS}\n\n{_table(kept)}\n\n{_sweep_table(sweeps)}"
  return Report(text, dict(record), {"theorem": _figure(kept, sweeps)})


def digits(examples: int) -> tuple[np.ndarray, np.ndarray]:
  """Scikit-learn's digits less their mean, of mean square one; +-1 for odd and even."""
  import sklearn.datasets

  x, y = sklearn.datasets.load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(x))[:examples]
  x = (x - x.mean(0))[order]
  return x / np.sqrt(np.mean(x**2)), 2.0 * (y[order] % 2) - 1


def cases(size: Size) -> list[Case]:
  """The theorem's setting, and one departure from it at a time."""
  x, y = digits(size.examples)
  many_x, many_y = digits(size.many)
  network = Network((size.width,), scale=LAZY)
  changed = dataclasses.replace
  twins = np.concatenate([x[:1], x[:-1]]), np.concatenate([-y[:1], y[:-1]])
  return [
    Case("the assumptions hold", network, x, y),
    Case("short steps", network, x, y, step=0.05),
    Case("steps of 1 / B", network, x, y, step=1.0),
    Case("damping of 10 lambda_0", network, x, y, damping=10.0),
    Case("eta above 2 / B", network, x, y, step=2.2),
    Case("output scale 1", changed(network, scale=1.0), x, y),
    Case("output scale 0.1", changed(network, scale=0.1), x, y),
    Case("three layers", changed(network, widths=(size.width, size.width)), x, y),
    Case("ReLU", changed(network, activation=jax.nn.relu), x, y),
    Case("narrow", changed(network, widths=(size.examples // 4,)), x, y),
    Case("n above every block", network, many_x, many_y),
    Case("n above all weights", changed(network, widths=(1,)), many_x, many_y),
    Case("equal inputs, opposite labels", network, *twins),
  ]


Kept = dict[str, Any]
"""An outcome's numbers, its losses thinned."""


class Sweep(NamedTuple):
  """The constant of the second assumption against one property of the network."""

  values: list[float]
  path: list[float]
  ball: list[float]


def by_width(size: Size) -> Sweep:
  """At the small scale of one, where width is supposed to help."""
  x, y = digits(size.examples)
  return _sweep(size.widths, lambda m: Case("", Network((int(m),)), x, y))


def by_scale(size: Size) -> Sweep:
  """At the width of the other cases."""
  x, y = digits(size.examples)
  return _sweep(size.scales, lambda a: Case("", Network((size.width,), scale=a), x, y))


def _sweep(values: list[float], build: Callable[[float], Case]) -> Sweep:
  outcomes = [measure(build(value), steps=20) for value in values]
  path = [outcome.constant for outcome in outcomes]
  return Sweep(values, path, [outcome.ball_constant for outcome in outcomes])


_FACTS = """\
B mini-blocks, n examples, eta in units of 1 / B, lambda_0 the smallest eigenvalue of
all Gram matrices at the start, C the constant that the second assumption would need
(the theorem: at most 1/2), on the path and at the worst points on the surface of the
assumption's ball that an ascent from eight random ones finds. `bound` is the largest
ratio of the loss to `(1 - eta)^k` times the first one (the theorem: at most 1),
`removed` the share of the loss that one step takes
away on average, and `linear` what a linear network would lose, `1 - (1 - eta B)^2`."""


def _table(cases: Mapping[str, Kept]) -> str:
  titles = ["case", "n", "B", "eta B", "lambda_0 / mean", "C on path", "C in ball"]
  titles += ["bound", "removed", "linear", "eta", "last loss / first", "holds"]
  rows = []
  for name, case in cases.items():
    step = case["learning_rate"] * case["blocks"]
    rows.append(
      [
        name,
        case["examples"],
        case["blocks"],
        f"{step:.3g}",
        f"{case['smallest'] / case['mean']:.1e}",
        f"{case['constant']:.2g}",
        f"{case['ball_constant']:.2g}",
        f"{case['excess']:.3g}",
        f"{case['removed']:.3g}",
        f"{1 - (1 - step) ** 2:.3g}",
        f"{case['learning_rate']:.2g}",
        f"{case['last']:.1e}",
        "yes" if case["excess"] <= 1 else "no",
      ]
    )
  return table(titles, rows)


def _sweep_table(sweeps: dict[str, Sweep]) -> str:
  rows = [
    [name, f"{value:g}", f"{path:.2g}", f"{ball:.2g}"]
    for name, sweep in sweeps.items()
    for value, path, ball in zip(*sweep, strict=True)
  ]
  return table(["varied", "value", "C on path", "C in ball"], rows)


def _record(outcome: Outcome) -> Kept:
  every = max(1, len(outcome.losses) // 200)
  return {
    **outcome._asdict(),
    "excess": outcome.excess,
    "removed": outcome.removed,
    "last": outcome.losses[-1],
    "every": every,
    "losses": outcome.losses[::every],
  }


def _restored(kept: Mapping[str, Any]) -> Kept:
  """A singular Gram matrix has no constant, which was kept as null."""
  return {name: np.nan if value is None else value for name, value in kept.items()}


_HELD = ("the assumptions hold", "short steps", "steps of 1 / B")


def _figure(
  cases: Mapping[str, Kept], sweeps: Mapping[str, Sweep]
) -> matplotlib.figure.Figure:
  figure, ((held, broken, needed),) = axes(1, 3, height=3.8)
  for name, case in cases.items():
    ax = held if name in _HELD else broken
    losses = numbers(case["losses"])
    k = case["every"] * np.arange(len(losses))
    (line,) = ax.plot(k, losses, label=name, linewidth=1.4)
    if ax is held:
      bound = (1 - case["learning_rate"]) ** k
      ax.plot(k, bound, color=line.get_color(), linestyle=":")
  for ax, title in (
    (held, "within the theorem (dotted: its bound)"),
    (broken, "outside its assumptions"),
  ):
    ax.set(yscale="log", ylim=(1e-18, 1e4), xlabel="steps", title=title)
    ax.legend(frameon=False, fontsize=7)
  held.set_ylabel("loss / first loss")
  for (name, sweep), color in zip(sweeps.items(), ("tab:blue", "tab:red"), strict=True):
    needed.plot(
      sweep.values, sweep.path, "o-", color=color, label=f"{name}, on the path"
    )
    needed.plot(
      sweep.values, sweep.ball, "o:", color=color, label=f"{name}, in the ball"
    )
  needed.axhline(0.5, color="black", linewidth=0.8)
  needed.set(xscale="log", yscale="log", xlabel="width, or output scale")
  needed.set_title("C that assumption 2 needs (at most 1/2)")
  needed.legend(frameon=False, fontsize=7)
  return figure
