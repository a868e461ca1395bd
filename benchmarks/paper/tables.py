"""Tables and pictures of comparisons."""

from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
import numpy as np

from benchmarks.paper import exponents, report
from benchmarks.paper.comparison import Outcome

COUNTS = 2.0


def protocol(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
  """How to read the tables; a text for every page that has them."""
  every = [outcome for results in outcomes.values() for outcome in results.values()]
  text = (
    "Mean ± standard deviation (ddof = 1) over seeds that the search has not seen."
    " Settings are chosen by held-out data that is not reported. `*` marks a value from"
    " which a step up or down was not tried, or is not on its ladder. Equal seconds are"
    " those of the fastest training. In brackets: the difference over its standard"
    f" error. It counts from {COUNTS:g} on, which was set before the runs; among so"
    " many comparisons one below 3 is no more than a hint."
  )
  warm = sorted({outcome.warm for outcome in every if outcome.warm})
  if warm:
    text += f" A warm start counts as {' or '.join(map(str, warm))} steps."
  return text


def comparison_section(
  outcomes: Mapping[str, Outcome],
  metrics: Mapping[str, str],
  references: Sequence[str] = ("mbf_adam", "mbf"),
) -> str:
  """The tables of one task: what was reached, who is ahead, and every seed.

  Args:
    outcomes: by name.
    metrics: formats by metric; the first one is what methods are compared by.
    references: the methods that are compared with all others, where they take part.
  """
  first, form = next(iter(metrics.items()))
  seconds = shortest(outcomes)
  parts = [_reached(outcomes, metrics, seconds)]
  parts += [
    _beside(outcomes, name, first, form, seconds)
    for name in references
    if name in outcomes and len(outcomes) > 1
  ]
  parts.append(_seeds(outcomes, first, form))
  return "\n\n".join(parts)


def sections(
  outcomes: Mapping[str, Mapping[str, Outcome]],
  metrics: Mapping[str, str],
  references: Sequence[str] = ("mbf_adam", "mbf"),
) -> str:
  """:func:`comparison_section` of every task, of the metrics that it has."""
  parts = []
  for name, results in outcomes.items():
    known = next(iter(results.values())).runs.metrics
    shown = {metric: form for metric, form in metrics.items() if metric in known}
    parts.append(f"### {name}\n\n{comparison_section(results, shown, references)}")
  return "\n\n".join([*parts, protocol(outcomes)])


def shortest(outcomes: Mapping[str, Outcome]) -> float:
  """Seconds of the fastest training: what all of them have to show something for."""
  return min(outcome.seconds * outcome.steps for outcome in outcomes.values())


def _reached(
  outcomes: Mapping[str, Outcome], metrics: Mapping[str, str], seconds: float
) -> str:
  """One row for each optimizer: setting, metrics at equal steps and equal seconds."""
  first, form = next(iter(metrics.items()))
  titles = ["optimizer", "setting", "tried", "diverged", *metrics]
  titles += ["ms a step", f"{first} in {seconds:.3g} s"]
  rows = []
  for name, outcome in outcomes.items():
    setting = ", ".join(
      f"{key} {value:.4g}" + ("*" if key in outcome.untried else "")
      for key, value in outcome.setting.items()
    )
    diverged = outcome.search.diverged().any(-1)
    cells = [report.spread(outcome.at_the_end(m), f) for m, f in metrics.items()]
    cells.append(f"{1e3 * outcome.seconds:.1f}")
    cells.append(report.spread(outcome.after_seconds(seconds, first), form))
    rows.append([name, setting, len(diverged), int(diverged.sum()), *cells])
  return report.table(titles, rows)


def _beside(
  outcomes: Mapping[str, Outcome], name: str, metric: str, form: str, seconds: float
) -> str:
  """A method's metric minus that of every other one."""

  def difference(mine: np.ndarray, others: np.ndarray) -> str:
    apart = mine.mean() - others.mean()
    if not np.isfinite(apart):
      return "NaN"
    error = _error(mine, others)
    return f"{_signed(form, apart)}" + (f" ({apart / error:+.1f})" if error else "")

  own = outcomes[name]
  rows = [
    [
      other,
      difference(own.at_the_end(metric), outcome.at_the_end(metric)),
      difference(
        own.after_seconds(seconds, metric), outcome.after_seconds(seconds, metric)
      ),
    ]
    for other, outcome in outcomes.items()
    if other != name
  ]
  alike = len({outcome.steps for outcome in outcomes.values()}) == 1
  ends = "equal steps" if alike else "each at its end"
  titles = [f"{name}'s {metric} minus that of", ends, "equal seconds"]
  return report.table(titles, rows)


def _signed(form: str, value: float) -> str:
  return form.replace("{:", "{:+").format(value)


def _error(*samples: np.ndarray) -> float:
  """Standard error of a difference of means, without assuming equal spreads."""
  return float(np.sqrt(sum(s.var(ddof=1) / len(s) for s in samples if len(s) > 1)))


def _seeds(outcomes: Mapping[str, Outcome], metric: str, form: str) -> str:
  """Every seed's metric."""
  rows = [
    [name, ", ".join(form.format(value) for value in outcome.at_the_end(metric))]
    for name, outcome in outcomes.items()
  ]
  return report.table(("optimizer", f"{metric} of each seed"), rows)


def comparison_figure(
  outcomes: Mapping[str, Mapping[str, Outcome]],
  metrics: Sequence[str] = (),
) -> matplotlib.figure.Figure:
  """Training loss against steps and seconds, and metrics, one row for each task."""
  columns = 2 + len(metrics)
  figure, grid = report.axes(len(outcomes), columns, width=4.2)
  for row, (task, results) in zip(grid, outcomes.items(), strict=True):
    lasted = [o.seconds * o.steps for o in results.values()]
    colors = report.colors(results)
    for name, outcome in results.items():
      style = {"label": name, "color": colors[name]}
      steps, losses = outcome.curve
      steps = steps + outcome.warm
      report.curve(row[0], steps, losses, **style)
      report.curve(row[1], steps * outcome.seconds, losses, **style)
      for ax, metric in zip(row[2:], metrics, strict=True):
        at = outcome.runs.at + outcome.warm
        report.curve(ax, at, outcome.runs.metrics[metric][0], **style)
    row[0].set(xlabel="steps", ylabel=f"{task}: training loss")
    row[1].set(xlabel="seconds", xlim=(0, min(4 * min(lasted), max(lasted))))
    _around(row[:2], [o.curve.losses for o in results.values()])
    for ax, metric in zip(row[2:], metrics, strict=True):
      ax.set(xlabel="steps", ylabel=metric)
      values = [o.runs.metrics[metric][0] for o in results.values()]
      if metric.endswith("loss"):
        _around([ax], values)
      else:  # the first one, of an untrained network, would hide all differences
        ax.set_ylim(bottom=min(float(np.nanmin(v[:, 1:])) for v in values))
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    row[-1].legend(frameon=False, fontsize=8, **beside)
  return figure


def _around(axes: Sequence[matplotlib.axes.Axes], losses: Sequence[np.ndarray]) -> None:
  """Logarithmic, to a little above the first losses: no divergence hides the rest."""
  lowest = min(float(np.nanmin(values)) for values in losses)
  first = max(float(values[:, 0].max()) for values in losses)
  for ax in axes:
    ax.set_ylim(0.95 * lowest, 1.1 * first)
    report.log_scale(ax)


def exponents_figure(
  outcomes: Mapping[str, Mapping[str, Outcome]], name: str = "mbf_adam"
) -> matplotlib.figure.Figure:
  """The exponents that ``mbf_adam`` reads off the gradients, layer by layer.

  Persistence is the square of what they lack of one.
  """
  shown = {task: results[name] for task, results in outcomes.items() if name in results}
  figure, grid = report.axes(1, max(1, len(shown)), width=4.2)
  for ax, (task, outcome) in zip(grid[0], shown.items(), strict=False):
    layers = [m for m in outcome.runs.metrics if m.startswith(exponents.TITLE)]
    for place, metric in enumerate(layers):
      color = matplotlib.colormaps["viridis"](place / max(1, len(layers) - 1))
      mean = outcome.runs.metrics[metric][0].mean(0)
      ax.plot(
        outcome.runs.at[1:],
        mean[1:],
        color=color,
        label=metric.removeprefix(exponents.TITLE),
      )
    ax.set(xlabel="steps", ylabel=f"{task}: exponent", ylim=(0, 1))
    if layers:
      ax.legend(frameon=False, fontsize=6)
  return figure
