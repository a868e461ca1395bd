"""The tables and the picture, from the files of results alone."""

import math
import pathlib
from collections.abc import Callable, Iterable, Sequence

import matplotlib.figure

from benchmarks.paper.report import axes, colors, table
from benchmarks.swap import results, statistics
from benchmarks.swap.optimizers import OPTIMIZERS
from benchmarks.swap.problems import HELD_OUT, TUNING
from benchmarks.swap.statistics import ByOptimizer, BySeed, Ratio, Record

Quantity = Callable[[BySeed, BySeed], Ratio]
Ratios = dict[str, dict[str, Ratio]]

_FIRST = "Training loss of the first 20 steps over Adam's"
_QUANTITIES: dict[str, Quantity] = {
  "Held-out loss over Adam's at equal steps": statistics.at_equal_steps,
  "Held-out loss over Adam's at equal seconds": statistics.at_equal_seconds,
  _FIRST: statistics.first_steps,
}
_COLLAPSED = 0.5  # of Adam's mean return


def write(folder: pathlib.Path) -> str:
  """Writes ``swap.md`` and ``swap.png`` into the folder of the results.

  Returns:
    The tables.

  Raises:
    SystemExit: if there is no problem with results of Adam and of another optimizer.
  """
  groups = _beside_adam(results.load(folder))
  begun = _beside_adam(results.first_steps(folder))
  returns = statistics.grouped(results.load(folder / "ppo"))
  if not (groups or begun or returns):
    raise SystemExit(
      f"{folder} holds no problem with results of adam and of another optimizer; run"
      " python -m benchmarks.swap, or give the folder with --out"
    )
  parts = []
  if groups:
    found = {title: ratios(groups, q) for title, q in _QUANTITIES.items()}
    parts += [_section(title, groups, part) for title, part in found.items()]
    parts.append(_notes(groups))
    picture(next(iter(found.values()))).savefig(folder / "swap.png", dpi=110)
  if begun:
    shares = ratios(begun, statistics.first_steps)
    parts += [_section(f"{_FIRST}, more seeds", begun, shares), _notes(begun)]
  parts += [_returns(name, group) for name, group in returns.items()]
  text = "\n\n".join(part for part in parts if part) + "\n"
  (folder / "swap.md").write_text(text)
  return text


def _beside_adam(records: Iterable[Record]) -> dict[str, ByOptimizer]:
  """Records of problems that have Adam's, none if there are no others at all."""
  groups = statistics.grouped(records)
  groups = {name: group for name, group in groups.items() if "adam" in group}
  return groups if any(len(group) > 1 for group in groups.values()) else {}


def ratios(groups: dict[str, ByOptimizer], quantity: Quantity) -> Ratios:
  """By problem and optimizer, the problem where ``mbf_adam`` is worst first."""
  found = {
    name: {
      optimizer: quantity(runs, group["adam"])
      for optimizer, runs in group.items()
      if optimizer != "adam" and set(runs) & set(group["adam"])
    }
    for name, group in groups.items()
  }

  def worst(name: str) -> float:
    chosen = found[name].get("mbf_adam")
    return -chosen.value if chosen else math.inf

  return {name: found[name] for name in sorted(found, key=worst)}


def picture(found: Ratios) -> matplotlib.figure.Figure:
  """Ratios of held-out losses, a row for every problem, the worst on top."""
  names, optimizers = list(found), _optimizers(found)
  figure, grid = axes(1, 1, width=8, height=1 + 0.36 * len(names))
  ax, chosen = grid[0, 0], colors([*OPTIMIZERS, *optimizers][:10])
  for place, optimizer in enumerate(optimizers):
    rows = [i for i, name in enumerate(names) if optimizer in found[name]]
    shown = [found[names[i]][optimizer] for i in rows]
    rows = [i for i, r in zip(rows, shown, strict=True) if math.isfinite(r.value)]
    shown = [found[names[i]][optimizer] for i in rows]
    ax.errorbar(
      [r.value for r in shown],
      [i + 0.12 * (place - (len(optimizers) - 1) / 2) for i in rows],
      xerr=[0 if math.isnan(r.error) else r.error for r in shown],
      label=optimizer,
      color=chosen.get(optimizer),
      fmt="o" if optimizer == "mbf_adam" else "|",
    )
  ax.axvline(1, color="black", linewidth=0.8)
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.set_xscale("log")
  ax.xaxis.set_major_formatter("{x:g}")
  ax.set_xlabel("held-out loss over Adam's at equal steps, at Adam's learning rate")
  ax.legend(frameon=False, fontsize=8)
  return figure


def _section(title: str, groups: dict[str, ByOptimizer], found: Ratios) -> str:
  optimizers = _optimizers(found)
  rows = []
  for name, row in found.items():
    adam = next(iter(groups[name]["adam"].values()))
    kind = "held out" if name in HELD_OUT else "tuning"
    cells = [_cell(row.get(optimizer)) for optimizer in optimizers]
    rows.append([name, kind, f"{adam['rate']:g}", adam["steps"], *cells])
  for label, names in (("tuning", TUNING), ("held out", HELD_OUT), ("all", found)):
    chosen = [found[name] for name in found if name in names]
    means = [_mean_cell(chosen, optimizer) for optimizer in optimizers]
    rows.append(["geometric mean", label, "", "", *means])
  rows.append(["worst", "all", "", "", *(_worst(found, o) for o in optimizers)])
  lines = table(["problem", "set", "rate", "steps", *optimizers], rows)
  return f"## {title}\n\n{lines}"


def _notes(groups: dict[str, ByOptimizer]) -> str:
  runs = [
    record
    for group in groups.values()
    for runs in group.values()
    for record in runs.values()
  ]
  seeds = sorted({len(runs) for group in groups.values() for runs in group.values()})
  lines = [
    f"Means over {' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds with the"
    " standard error of their ratio; bold is what is above 1 by more than two of them."
  ]
  machines = {
    f"{run['environment']['cores']} cores, {run['environment']['device']}"
    for run in runs
  }
  libraries = {
    ", ".join(f"{k} {v}" for k, v in run["environment"]["versions"].items())
    for run in runs
  }
  lines += [f"Machine: {text}." for text in sorted(machines)]
  lines += [f"Versions: {text}." for text in sorted(libraries)]
  notes = {(run["problem"], run["note"]) for run in runs if run["note"]}
  lines += [f"{problem} has {note}." for problem, note in sorted(notes)]
  return "\n".join(f"- {line}" for line in lines)


def _returns(task: str, group: ByOptimizer) -> str:
  """Returns of reinforcement learning, the more the better."""
  values = {
    name: [runs[seed]["return"] for seed in sorted(runs)]
    for name, runs in group.items()
  }
  nothing = Ratio(math.nan, math.nan)
  adam = statistics.mean(values["adam"]) if "adam" in values else nothing
  rows = []
  for name in _ordered(values):
    mean, low = statistics.mean(values[name]), min(values[name])
    # Where returns are costs, as pendulum's are, half of them is twice the cost.
    limit = adam.value * (_COLLAPSED if adam.value > 0 else 1 / _COLLAPSED)
    collapsed = sum(value < limit for value in values[name])
    spread = f"{mean.value:.1f} ± {mean.error:.1f}"
    # Not paired by seed: in one batch with others a seed's return is another one.
    share = "1.000" if name == "adam" else _plain(statistics.quotient(mean, adam))
    rows.append([name, len(values[name]), spread, share, f"{low:.1f}", collapsed])
  titles = ["optimizer", "seeds", "return", "over Adam's", "worst seed", "collapsed"]
  note = (
    "Return of the episodes of the last 20 updates, mean and standard error over seeds;"
    " collapsed: seeds with less than half of Adam's mean return, or twice its cost."
  )
  return f"## PPO, {task}\n\n{table(titles, rows)}\n\n{note}"


def _ordered(names: Sequence[str] | dict) -> list[str]:
  return [*(n for n in OPTIMIZERS if n in names), *sorted(set(names) - set(OPTIMIZERS))]


def _optimizers(found: Ratios) -> list[str]:
  return _ordered({name: None for row in found.values() for name in row})


def _cell(found: Ratio | None) -> str:
  if found is None:
    return ""
  text = _plain(found)
  return f"**{text}**" if found.value - 2 * found.error > 1 else text


def _plain(found: Ratio) -> str:
  if not math.isfinite(found.value):
    return "diverged"
  if math.isnan(found.error):
    return f"{found.value:.3f}"
  return f"{found.value:.3f} ± {found.error:.3f}"


def _mean_cell(rows: Sequence[dict[str, Ratio]], optimizer: str) -> str:
  """Empty unless the optimizer has every problem."""
  shown = [row[optimizer] for row in rows if optimizer in row]
  if not shown or len(shown) < len(rows):
    return ""
  return _cell(statistics.geometric_mean(shown))


def _worst(found: Ratios, optimizer: str) -> str:
  shown = [row[optimizer] for row in found.values() if optimizer in row]
  return _cell(max(shown, key=lambda ratio: ratio.value))
