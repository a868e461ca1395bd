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
    start: makes the first carry; called once, when the loop is timed.
    function: the function.
    period: calls after which its work repeats.
  """

  def __init__(
    self, start: Callable[[], Any], function: Callable[[Any], Any], period: int = 1
  ):
    self._start, self._function, self.period = start, function, period
    self._jitted = jax.jit(function, donate_argnums=0)
    self.compiled: jax.stages.Compiled | None = None

  def lower(self) -> jax.stages.Lowered:
    """The program, for the shapes of the first carry."""
    return self._jitted.lower(jax.eval_shape(self._start))

  def seconds(self, rounds: int, calls: int) -> float:
    """Median over rounds of the mean seconds of a call, whole periods in each."""
    calls = self.period * max(1, round(calls / self.period))
    carry, found = jax.jit(self._start)(), []
    for _ in range(rounds + 1):
      jax.block_until_ready(carry)
      begun = time.perf_counter()
      for _ in range(calls):
        carry = self.compiled(carry)
      jax.block_until_ready(carry)
      found.append((time.perf_counter() - begun) / calls)
    return float(np.median(found[1:]))  # the first one warms up


def compile_all(loops: Mapping[str, Loop], seconds: float) -> dict[str, float]:
  """Compiles side by side, one thread a core.

  Args:
    loops: by name.
    seconds: after which those that are not ready are left out.

  Returns:
    Seconds that XLA took for each that is ready.
  """
  begun = time.perf_counter()

  def compiled(loop: Loop, lowered: jax.stages.Lowered) -> float:
    start = time.perf_counter()
    loop.compiled = lowered.compile()
    return time.perf_counter() - start

  executor = ThreadPoolExecutor(os.cpu_count())
  futures = {}
  for name, loop in loops.items():
    if time.perf_counter() - begun > seconds:
      break
    futures[name] = executor.submit(compiled, loop, loop.lower())
  wait(futures.values(), timeout=max(0.0, begun + seconds - time.perf_counter()))
  executor.shutdown(wait=False, cancel_futures=True)
  return {name: f.result() for name, f in futures.items() if f.done()}
