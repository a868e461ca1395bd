"""What an experiment is given, and what it gives back."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

Scale = Literal["quick", "cpu", "paper"]


class Options(NamedTuple):
  """How to run an experiment.

  Attributes:
    scale: ``"cpu"`` finishes within hours on two cores, ``"paper"`` is the paper's
      own setting, ``"quick"`` takes a few steps to see that everything runs.
    data_dir: folder of tensorflow-datasets; ``None`` is its own default.
    extra_data: folder of ``faces_like.npz``, ``cora.npz`` and ``tinyshakespeare.txt``.
    work: folder for caches and checkpoints.
    resume: whether to continue from the checkpoints there.
    optimizers: those that take part; ``None`` is all.
    only: the tasks that take part; ``None`` is all.
    published: whether the paper's own best settings take the place of a search.
    bfloat16: whether networks pass images in half precision.
    seeds: runs to report, in place of the experiment's own number.
    steps: updates after which a training stops, if it is longer. Its schedule remains.
    known: record of an earlier run, whose optimizers are timed again but not trained.
  """

  scale: Scale = "cpu"
  data_dir: str | None = None
  extra_data: pathlib.Path | None = None
  work: pathlib.Path = pathlib.Path("results/paper")
  resume: bool = False
  optimizers: list[str] | None = None
  only: list[str] | None = None
  published: bool = False
  bfloat16: bool = False
  seeds: int | None = None
  steps: int | None = None
  known: pathlib.Path | None = None

  def chosen(
    self, optimizers: Mapping[str, Any], needed: Collection[str] = ()
  ) -> dict[str, Any]:
    """Those of the optimizers that take part, the needed ones among them."""
    wanted = list(optimizers) if self.optimizers is None else self.optimizers
    wrong = sorted({*wanted} - {*optimizers} | {*needed} - {*wanted})
    if wrong:
      remedy = f"name {' and '.join([*needed, 'any'])} of {', '.join(optimizers)}"
      raise ValueError(
        f"--optimizers: {', '.join(wrong)} is unknown or missing; {remedy}"
      )
    return {name: o for name, o in optimizers.items() if name in wanted}

  def chosen_tasks(self, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the tasks that take part."""
    unknown = sorted({*(self.only or ())} - {*tasks})
    if unknown:
      raise ValueError(
        f"--only: {', '.join(unknown)} is unknown; name any of {', '.join(tasks)}"
      )
    return {n: task for n, task in tasks.items() if self.only is None or n in self.only}


class Report(NamedTuple):
  """What an experiment found.

  Attributes:
    text: tables and facts in Markdown, without a title.
    record: the same numbers, and the curves, as plain JSON.
    figures: pictures by name.
  """

  text: str
  record: dict[str, Any]
  figures: dict[str, Figure]
