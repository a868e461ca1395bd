"""What mbf_optax costs on the accelerator of this machine, in at most eight minutes.

Inverses beside a Cholesky factorization, an update beside a copy of the bytes that it
must move, and whole training steps of Adam, muon, ``mbf`` and ``mbf_adam``. Everything
is compiled first, side by side; what is not ready in time is left out and named. Then
a language model of bytes trains on the Python library's own sources.

python -m benchmarks.cost.device
python -m benchmarks.cost.device --only ResNet32 update    # what begins so
python -m benchmarks.cost.device --size small    # to see that it runs, on a CPU too
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mbf_optax
from benchmarks import models
from benchmarks.cost import python_sources
from benchmarks.cost.loops import Loop, attempt, compile_all
from benchmarks.cost.optimizers import OPTIMIZERS, Timed, muon
from benchmarks.cost.problems import Problem, autoencoder, images, language
from benchmarks.cost.report import environment
from benchmarks.paper.report import table
from mbf_optax._estimators.full import PACKED_LIMIT
from mbf_optax._linalg import groups, methods, triangles

REPEATS = 10
CONTENDERS = ("adam", "muon", "mbf", "mbf(1,1)", "mbf_adam", "mbf_adam(1,1)")


class Size(NamedTuple):
  """How large everything is.

  Attributes:
    inverses: numbers of matrices and their orders.
    channels: of the convolution whose update is beside a copy.
    problems: to time whole steps of, each with whether it computes in bfloat16.
    model: that is trained.
  """

  inverses: tuple[tuple[int, int], ...]
  channels: int
  problems: Mapping[str, tuple[Callable[[], Problem], bool]]
  model: python_sources.Setting


SIZES = {
  "full": Size(
    ((262_144, 9), (180, 136), (48, 513), (64, 65), (16, 257), (4, 1025), (1, 4097)),
    512,
    {
      "autoencoder, 1000": (autoencoder, False),
      "ResNet32, 128": (lambda: images(models.ResNet(32)), False),
      "VGG16, 128": (lambda: images(models.VGG(), classes=100), False),
      "GPT-2 small, 8 x 1024": (
        lambda: language(models.Transformer(50_257, 768, 12, 12), 8, 1024),
        True,
      ),
    },
    python_sources.Setting(width=512, layers=8, heads=8, batch=32, length=512),
  ),
  "small": Size(
    ((64, 9), (4, 65)),
    8,
    {
      "autoencoder, 8": (lambda: autoencoder(8, (6, 12)), False),
      "GPT, 2 x 8": (
        lambda: language(models.Transformer(65, 16, 1, 2), 2, 8),
        True,
      ),
    },
    python_sources.Setting(
      width=16, layers=1, heads=2, batch=2, length=16, steps=8, points=2
    ),
  ),
}


def inverse_loops(size: Size) -> dict[str, Loop]:
  """The library's inverses, and the factorizations that they are compared with."""
  loops = {}
  for batch, n in size.inverses:
    start = functools.partial(_matrices, batch, n)
    loops[f"inverse {batch} x {n}"] = Loop(start, _inverse_step, repeats=REPEATS)
    loops[f"cholesky {batch} x {n}"] = Loop(start, _cholesky_step, repeats=REPEATS)
  return loops


def _matrices(batch: int, n: int) -> tuple[jax.Array, jax.Array]:
  """Damped matrices, packed where the library packs them, and room for a result."""
  shape = (n, batch, min(n, 16))
  vectors = jax.random.normal(jax.random.key(n), shape)
  found = jnp.einsum("ibr,jbr->bij", vectors, vectors, precision="highest") / shape[-1]
  stored = _stored(found + 0.1 * jnp.eye(n)[None])
  return stored, jnp.zeros_like(stored)


def _stored(matrices: jax.Array) -> jax.Array:
  if matrices.shape[-1] > PACKED_LIMIT:
    return matrices
  return triangles.pack(jnp.moveaxis(matrices, 0, -1))


def _inverse_step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  stored, _ = carry
  group = groups.Group(is_packed=stored.ndim == 2, as_factor=False, parts=[])
  return stored, methods.invert(group, [stored], "sweep")[0]


def _cholesky_step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  stored, _ = carry
  if stored.ndim == 2:  # the fair thing to beat there: a copy
    return stored, stored + 1
  return stored, jax.lax.linalg.cholesky(stored, symmetrize_input=False)


def update_loops(size: Size) -> dict[str, Loop]:
  """An update of 3x3 kernels that refreshes nothing, and a copy of its bytes."""
  shape = (3, 3, size.channels, size.channels)
  loops = {}
  for name, tx in (
    ("mbf", mbf_optax.scale_by_mbf(inverse_update_period=1_000_000)),
    ("mbf_adam", mbf_optax.scale_by_mbf_adam(inverse_update_period=1_000_000)),
  ):
    start = functools.partial(_after_a_refresh, tx, shape)
    step = functools.partial(_update_step, tx)
    loops[f"update of {name}"] = Loop(start, step, repeats=REPEATS)
    moved = _bytes_moved(start)
    ones = functools.partial(jnp.ones, moved // 8)
    loops[f"copy for {name}"] = Loop(ones, lambda x: x + 1, repeats=REPEATS)
  return loops


def _after_a_refresh(
  tx: optax.GradientTransformation, shape: tuple[int, ...]
) -> tuple[Any, Any, Any]:
  """Gradients, a state, and room for the updates, which would else not be computed."""
  gradients = {"kernel": jnp.ones(shape)}
  updates = {"kernel": jnp.zeros(shape)}
  state = tx.init(gradients)
  past = jnp.int32(1_000_001)  # beyond the early refreshes of mbf_adam too
  if isinstance(state, mbf_optax.MbfAdamState):
    adam = state.adam._replace(count=past)
    return gradients, state._replace(adam=adam), updates
  return gradients, state._replace(count=past), updates


def _update_step(tx: optax.GradientTransformation, carry: tuple) -> tuple:
  gradients, state, _ = carry
  updates, state = tx.update(gradients, state, gradients)
  return gradients, state, updates


def _bytes_moved(start: Callable[[], tuple[Any, Any, Any]]) -> int:
  """Gradients and inverses are read alone, updates written alone, all else both."""
  gradient, state, _ = jax.eval_shape(start)
  floats = [leaf.size for leaf in jax.tree.leaves((gradient, state))]
  kept = jax.tree_util.tree_leaves_with_path(state.curvature)
  read_alone = sum(leaf.size for path, leaf in kept if path[-1].name == "inverse")
  return 4 * (2 * (sum(floats) - read_alone) + read_alone)


def step_loops(size: Size) -> dict[str, Loop]:
  """Whole training steps of every problem and contender."""
  loops = {}
  for title, (make, half) in size.problems.items():
    problem = make()
    for name in CONTENDERS:
      timed = muon(problem.head) if name == "muon" else OPTIMIZERS[name]()
      loops[f"{title}: {name}"] = Loop(
        functools.partial(_beginning, problem, timed),
        functools.partial(_training_step, problem, timed, half),
        timed.inverse,
      )
  return loops


def _beginning(problem: Problem, timed: Timed) -> tuple[Any, Any, Any]:
  """Numbers that cost no time to compile, as random ones would."""
  variables = jax.eval_shape(problem.model.init, jax.random.key(0), problem.inputs)
  mutable = jax.tree.map(_numbers, variables)
  params = mutable.pop("params")
  return params, mutable, timed.tx.init(params)


def _numbers(like: jax.ShapeDtypeStruct) -> jax.Array:
  """Different ones between 0.01 and 0.03, which no network is hurt by."""
  last = jnp.arange(like.shape[-1] if like.ndim else 1, dtype=like.dtype)
  found = 0.02 + 0.01 * jnp.sin(last)
  return jnp.broadcast_to(found.reshape(like.shape[-1:]), like.shape)


def _training_step(problem: Problem, timed: Timed, half: bool, carry: tuple) -> tuple:
  params, mutable, state = carry

  def loss(params: Any) -> tuple[jax.Array, Any]:
    if half:
      params = optax.tree.cast(params, jnp.bfloat16)
    outputs, changed = problem.model.apply(
      {"params": params, **mutable}, problem.inputs, mutable=list(mutable)
    )
    return problem.loss(outputs.astype(jnp.float32), problem.targets), changed

  gradients, mutable = jax.grad(loss, has_aux=True)(params)
  updates, state = timed.tx.update(gradients, state, params)
  return optax.apply_updates(params, updates), mutable, state


def tables(size: Size, times: Mapping[str, float], failed: Mapping[str, str]) -> str:
  """What was timed, as ratios, and what was not, with the reason."""
  inverses = [
    _row(f"{b} x {n}", times, f"inverse {b} x {n}", f"cholesky {b} x {n}")
    for b, n in size.inverses
  ]
  updates = [
    _row(name, times, f"update of {name}", f"copy for {name}")
    for name in ("mbf", "mbf_adam")
  ]
  steps = [
    _row(f"{title}: {name}", times, f"{title}: {name}", f"{title}: adam")
    for title in size.problems
    for name in CONTENDERS
  ]
  found = [[row for row in rows if row[1]] for rows in (inverses, updates, steps)]
  inverses, updates, steps = found
  packed = f"up to {PACKED_LIMIT}, a copy instead"
  return "\n\n".join(
    [
      *(f"{name}: {reason}" for name, reason in failed.items()),
      table(("matrices", "inverse, ms", f"Cholesky ({packed}), ms", "ratio"), inverses),
      table(("3x3 kernels", "update, ms", "copy of its bytes, ms", "ratio"), updates),
      table(("training step", "ms", "Adam's, ms", "ratio"), steps),
    ]
  )


def _row(title: str, times: Mapping[str, float], mine: str, other: str) -> list[str]:
  pair = [times.get(name) for name in (mine, other)]
  cells = ["" if t is None else f"{1e3 * t:.3f}" for t in pair]
  ratio = "" if None in pair else f"{pair[0] / pair[1]:.2f}"
  return [title, *cells, ratio]


def main(arguments: list[str] | None = None) -> None:
  """Compiles, times, trains, prints and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="full")
  parser.add_argument("--rounds", type=int, default=5, help="timings of each program")
  parser.add_argument(
    "--compile-seconds", type=float, default=180, help="nothing is begun after that"
  )
  parser.add_argument(
    "--seconds", type=float, default=420, help="nothing is timed after that"
  )
  parser.add_argument(
    "--only", nargs="+", default=[""], help="beginnings of the names of what to time"
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  options = parser.parse_args(arguments)
  begun, size = time.perf_counter(), SIZES[options.size]

  def is_late() -> bool:
    return time.perf_counter() - begun > options.seconds

  trainings = python_sources.trainings(size.model)
  # The dearest last: they are what is left out where compiling takes long.
  loops = inverse_loops(size) | update_loops(size) | step_loops(size)
  loops |= {name: training.loop for name, training in trainings.items()}
  loops = {n: loop for n, loop in loops.items() if n.startswith(tuple(options.only))}
  compiled, failed = compile_all(loops, options.compile_seconds)
  print(f"compiled {len(compiled)} of {len(loops)}", flush=True)
  options.out.mkdir(parents=True, exist_ok=True)
  times: dict[str, float] = {}
  losses: dict[str, dict[str, list[float]]] = {}

  def keep() -> str:
    text = f"{tables(size, times, failed)}\n\n{python_sources.table_of(losses)}\n"
    record = environment() | {
      "seconds": times,
      "compile seconds": compiled,
      "trainings": losses,
      "left out": failed,
      "minutes": (time.perf_counter() - begun) / 60,
    }
    (options.out / "device.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "device.md").write_text(text)
    return text

  for name in compiled:
    if name in trainings:
      continue
    if is_late():
      failed[name] = "not timed in time"
      continue
    measure = functools.partial(loops[name].seconds, options.rounds, calls=20)
    found = attempt(measure, failed, name)
    if found is not None:
      times[name] = found
      print(f"{name}: {1e3 * found:.3f} ms", flush=True)
  keep()
  for name, training in trainings.items():
    if name in compiled and not is_late():
      found = attempt(training.run, failed, name)
      losses |= {} if found is None else {name: found}
      keep()
  print(keep())


if __name__ == "__main__":
  main()
