"""Checkpoints of trainings, so that an experiment resumes after a kill."""

import pathlib
import time
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoint:
  """The latest state of one training.

  Attributes:
    folder: where it is kept.
    resume: whether to restore what is there; otherwise it is overwritten.
    interval: seconds that pass at least between two savings, and ten times what the
      last one took; the last step is always saved.
  """

  def __init__(self, folder: pathlib.Path, resume: bool, interval: float = 60):
    self.folder, self.resume, self.interval = folder.resolve(), resume, interval
    self._manager = ocp.CheckpointManager(
      self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=1)
    )
    self._saved, self._took = time.monotonic(), 0.0
    if not resume:
      for step in self._manager.all_steps():
        self._manager.delete(step)

  def restore(self, expected: Any) -> tuple[int, Any] | None:
    """The steps done and the state after them, or ``None`` if nothing was saved.

    Args:
      expected: a tree of arrays or of their shapes like the state.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, expected)
    return step, self._manager.restore(step, args=ocp.args.StandardRestore(target))

  def save(self, step: int, state: Any, last: bool) -> None:
    """Saves unless it did so recently; returns when the files are complete."""
    begun = time.monotonic()
    if not last and begun - self._saved < max(self.interval, 10 * self._took):
      return
    self._manager.save(step, args=ocp.args.StandardSave(state))
    self._manager.wait_until_finished()
    self._saved = time.monotonic()
    self._took = self._saved - begun
