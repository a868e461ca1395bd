"""Times the pieces of an update by themselves, next to their alternatives.

Inverses against ``jnp.linalg.inv``; statistics and application of 3x3 blocks in the
library's packed layout against matrices with the batch leading; a shared layer's
product by strips against a whole one; and passes over a ``low_rank`` history against
one in half precision.

python -m benchmarks.cost.kernels
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.report import table
from mbf_optax._estimators.full import PACKED_LIMIT
from mbf_optax._linalg import triangles
from mbf_optax._linalg.products import symmetric_product
from mbf_optax._linalg.sweep import spd_inverse

_HIGHEST = jax.lax.Precision.HIGHEST
INVERSES = (
  (16384, 9),
  (4096, 25),
  (1024, 49),
  (180, 136),
  (16, 257),
  (4, 1025),
  (1, 4097),
)


def seconds(functions: dict[str, Callable], *operands: Any, rounds: int) -> dict:
  """Best seconds of every function, called in turn, compiled before."""
  compiled = {k: jax.jit(f).lower(*operands).compile() for k, f in functions.items()}
  found = {name: [] for name in functions}
  for _ in range(rounds + 1):
    for name, function in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*operands))
      found[name].append(time.perf_counter() - start)
  return {name: float(np.median(times[1:])) for name, times in found.items()}


def inverses(rounds: int) -> str:
  """The library's inverses and LAPACK's (or the platform's), and their errors."""
  rows = []
  for batch, n in INVERSES:
    vectors = jax.random.normal(jax.random.key(n), (n, batch, min(n, 64)))
    matrices = jnp.einsum("ibr,jbr->bij", vectors, vectors, precision=_HIGHEST)
    matrices = matrices / vectors.shape[-1] + 1e-2 * jnp.eye(n)[None]
    ours, operand = spd_inverse, matrices
    if n <= PACKED_LIMIT:
      ours, operand = triangles.inverse, triangles.pack(jnp.moveaxis(matrices, 0, -1))
    (mine,) = seconds({"": ours}, operand, rounds=rounds).values()
    (other,) = seconds({"": jnp.linalg.inv}, matrices, rounds=rounds).values()
    rows.append([f"{batch} x {n}", _ms(mine), _ms(other), f"{mine / other:.2f}"])
  return table(("batch x n", "sweep, ms", "linalg.inv, ms", "ratio"), rows)


def layouts(rounds: int, blocks: int = 262_144, n: int = 9) -> str:
  """Statistics and application of small blocks, packed and with the batch leading."""
  keys = jax.random.split(jax.random.key(0))
  vectors = jax.random.normal(keys[0], (n, blocks))
  leading = vectors.T
  packed = triangles.outer(jax.random.normal(keys[1], (n, blocks)))
  matrices = jnp.moveaxis(triangles.unpack(packed), -1, 0)
  cases = {
    "ten statistics": (
      seconds({"": _packed_statistics}, packed, vectors, rounds=rounds),
      seconds({"": _leading_statistics}, matrices, leading, rounds=rounds),
    ),
    "application": (
      seconds({"": triangles.matvec}, packed, vectors, rounds=rounds),
      seconds({"": _leading_matvec}, matrices, leading, rounds=rounds),
    ),
  }
  rows = []
  for name, (mine, other) in cases.items():
    rows.append([name, _ms(mine[""]), _ms(other[""]), f"{mine[''] / other['']:.2f}"])
  return table(("3x3 blocks", "packed, ms", "batch leading, ms", "ratio"), rows)


def _packed_statistics(statistics: jax.Array, vectors: jax.Array) -> jax.Array:
  return _repeated(lambda s: 0.9 * s + 0.1 * triangles.outer(vectors), statistics)


def _leading_statistics(statistics: jax.Array, vectors: jax.Array) -> jax.Array:
  def add(s: jax.Array) -> jax.Array:
    return 0.9 * s + 0.1 * vectors[:, :, None] * vectors[:, None, :]

  return _repeated(add, statistics)


def _repeated(
  function: Callable[[jax.Array], jax.Array], operand: jax.Array
) -> jax.Array:
  """``function`` ten times over, in place, as in training: memory is there already."""
  return jax.lax.fori_loop(0, 10, lambda _, array: function(array), operand)


def _leading_matvec(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
  return jnp.einsum("bij,bj->bi", matrices, vectors, precision=_HIGHEST)


def products(rounds: int) -> str:
  """``A A^T`` of wide layers, in strips and whole."""
  rows = []
  for n, m in ((257, 256), (785, 1000), (1025, 256), (4097, 4096)):
    columns = jax.random.normal(jax.random.key(0), (n, m))
    found = seconds(
      {
        "strips": symmetric_product,
        "whole": lambda a: jnp.matmul(a, a.T, precision=_HIGHEST),
      },
      columns,
      rounds=rounds,
    )
    ratio = f"{found['strips'] / found['whole']:.2f}"
    rows.append([f"{n} x {m}", _ms(found["strips"]), _ms(found["whole"]), ratio])
  return table(("n x outputs", "strips, ms", "whole, ms", "ratio"), rows)


def histories(rounds: int, neurons: int = 1000, rank: int = 16, n: int = 785) -> str:
  """A pass over the last gradients of a layer, kept in float32 and in bfloat16."""
  keys = jax.random.split(jax.random.key(0), 3)
  history = jax.random.normal(keys[0], (neurons, rank, n))
  gradient = jax.random.normal(keys[1], (neurons, n))
  weights = jax.random.normal(keys[2], (neurons, rank))
  passes: dict[str, tuple[Callable, Callable, jax.Array]] = {
    "inner products": (
      lambda h, v: jnp.matmul(h, v[..., None], precision=_HIGHEST),
      lambda h, v: (h.astype(v.dtype) * v[:, None]).sum(-1),
      gradient,
    ),
    "combination": (
      lambda h, v: jnp.matmul(v[:, None], h, precision=_HIGHEST),
      lambda h, v: (h.astype(v.dtype) * v[..., None]).sum(1),
      weights,
    ),
  }
  rows = []
  for name, (whole, rounded, vectors) in passes.items():
    (first,) = seconds({"": whole}, history, vectors, rounds=rounds).values()
    half = history.astype(jnp.bfloat16)
    (second,) = seconds({"": rounded}, half, vectors, rounds=rounds).values()
    rows.append([name, _ms(first), _ms(second), f"{second / first:.2f}"])
  titles = (f"{neurons} x {rank} x {n}", "float32, ms", "bfloat16, ms", "ratio")
  return table(titles, rows)


def _ms(value: float) -> str:
  return f"{1e3 * value:.2f}"


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=7, help="timings of each piece")
  rounds = parser.parse_args().rounds
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  for piece in (inverses, layouts, products, histories):
    print(f"\n{piece(rounds)}", flush=True)


if __name__ == "__main__":
  main()
