"""Programs that are compiled side by side first, and timed one after the other then."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np


class Loop:
  """A function from a carry to the next one, called again and again.

  Args:
    start: makes the first carry; called when the loop is timed.
    function: the function.
    period: calls after which its work repeats.
    repeats: applications in one call: a single one of a small function takes less time
      than to call it.
  """

  def __init__(
    self,
    start: Callable[[], Any],
    function: Callable[[Any], Any],
    period: int = 1,
    repeats: int = 1,
  ):
    self.period, self.repeats = period, repeats
    self._jitted_start = jax.jit(start)
    self.function = function
    self._jitted = jax.jit(self._repeated, donate_argnums=0)
    self.start: Callable[[], Any] | None = None
    self.compiled: Callable[[Any], Any] | None = None

  def _repeated(self, carry: Any) -> Any:
    if self.repeats == 1:
      return self.function(carry)

    def again(_: Any, carry: Any) -> Any:
      # What no repetition changes would be computed once.
      return self.function(jax.lax.optimization_barrier(carry))

    return jax.lax.fori_loop(0, self.repeats, again, carry)

  def lower(self) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """The programs that make the first carry and the next one."""
    carry = jax.eval_shape(self._jitted_start)
    return self._jitted_start.lower(), self._jitted.lower(carry)

  def compile(self, lowered: tuple[jax.stages.Lowered, jax.stages.Lowered]) -> float:
    """Compiles both; returns the seconds that the second took."""
    self.start = lowered[0].compile()
    begun = time.perf_counter()
    self.compiled = lowered[1].compile()
    return time.perf_counter() - begun

  def seconds(self, rounds: int, calls: int) -> float:
    """Median over rounds of the mean seconds of a function call, of whole periods."""
    calls = self.period * max(1, round(calls / self.period))
    carry, found = self.start(), []
    for _ in range(rounds + 1):
      jax.block_until_ready(carry)
      begun = time.perf_counter()
      for _ in range(calls):
        carry = self.compiled(carry)
      jax.block_until_ready(carry)
      found.append((time.perf_counter() - begun) / calls / self.repeats)
    return float(np.median(found[1:]))  # the first one warms up


def compile_all(
  loops: Mapping[str, Loop], seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
  """Compiles side by side, one thread a core, the first ones first.

  Args:
    loops: by name.
    seconds: after which those that nobody has begun to compile are left out. Those
      that have begun are waited for: beside them nothing can be timed.

  Returns:
    Seconds that XLA took for each that is ready, and why each other one is not.
  """
  begun = time.perf_counter()
  executor = ThreadPoolExecutor(os.cpu_count())
  futures, found, failed = {}, {}, {}
  for name, loop in loops.items():
    if time.perf_counter() - begun > seconds:
      failed[name] = "not compiled in time"
    else:
      futures[name] = executor.submit(loop.compile, loop.lower())
  wait(futures.values(), timeout=max(0.0, begun + seconds - time.perf_counter()))
  executor.shutdown(wait=True, cancel_futures=True)
  for name, future in futures.items():
    if future.cancelled():
      failed[name] = "not compiled in time"
    elif future.exception() is not None:
      failed[name] = _first_line(future.exception())
    else:
      found[name] = future.result()
  return found, failed


def attempt(function: Callable[[], Any], failed: dict[str, str], name: str) -> Any:
  """What the function returns; an error is noted under the name, and ends nothing."""
  try:
    return function()
  except Exception as error:
    failed[name] = _first_line(error)
    return None


def _first_line(error: BaseException | None) -> str:
  return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
