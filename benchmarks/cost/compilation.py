"""What an update takes to compile: tracing, lowering and XLA apart, for deep networks.

And once more, as in the next process with jax's cache of compiled programs on disk.
Processor seconds of the whole process: run it alone. Nothing is trained, the shapes of
the networks' parameters are enough.

python -m benchmarks.cost.compilation
python -m benchmarks.cost.compilation --networks transformer --optimizers adam mbf_adam
"""

import argparse
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import mbf_optax
from benchmarks import models
from benchmarks.cost.report import environment

_IMAGE = jnp.zeros((1, 32, 32, 3))
NETWORKS: dict[str, Callable[[], tuple[nn.Module, jax.Array]]] = {
  "transformer": lambda: (
    models.Transformer(256, 256, 12, 4),
    jnp.zeros((1, 16), jnp.int32),
  ),
  "resnet110": lambda: (models.ResNet(110), _IMAGE),
  "autoencoder": lambda: (models.Autoencoder(models.MNIST_WIDTHS), jnp.zeros((1, 784))),
}
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
  "adam": lambda: optax.adam(1e-3),
  "mbf": lambda: mbf_optax.mbf(1e-3),
  "mbf_adam": lambda: mbf_optax.mbf_adam(1e-3),
}


class Compilation(NamedTuple):
  """Processor seconds of the stages, and the program's operations.

  Attributes:
    trace: from Python to equations.
    lower: from equations to StableHLO.
    compile: from there to machine code.
    operations: of the StableHLO program.
  """

  trace: float
  lower: float
  compile: float
  operations: int

  @property
  def total(self) -> float:
    """Of all stages."""
    return self.trace + self.lower + self.compile


def compilation(tx: optax.GradientTransformation, params: Any) -> Compilation:
  """Compiles an update for parameters given by their shapes."""
  state = jax.eval_shape(tx.init, params)
  clock = [time.process_time()]

  def timed(stage: Any) -> Any:
    clock.append(time.process_time())
    return stage

  traced = timed(jax.jit(tx.update).trace(params, state, params))
  lowered = timed(traced.lower())
  timed(lowered.compile())
  seconds = [after - before for before, after in itertools.pairwise(clock)]
  return Compilation(*seconds, lowered.as_text().count(" = "))


def stored(folder: str) -> None:
  """Has jax keep every compiled program in a folder, and take it from there."""
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def twice(
  tx: optax.GradientTransformation, params: Any
) -> tuple[Compilation, Compilation]:
  """Compiles as the first process does and, after :func:`stored`, as the next one."""
  first = compilation(tx, params)
  jax.clear_caches()
  return first, compilation(tx, params)


def parameters(network: str) -> Any:
  """Shapes of a network's parameters."""
  model, example = NETWORKS[network]()
  return jax.eval_shape(model.init, jax.random.key(0), example)["params"]


def table(network: str, found: dict[str, tuple[Compilation, Compilation]]) -> str:
  """A row for each optimizer, its seconds beside Adam's."""
  adam = found["adam"][0].total
  rows = [
    f"{network:14s} trace s  lower s  XLA s  all s  all/adam  again s  operations",
    *(
      f"{name:14s} {c.trace:7.2f}  {c.lower:7.2f}  {c.compile:5.1f}  {c.total:5.1f}"
      f"  {c.total / adam:8.1f}  {again.total:7.1f}  {c.operations:10,}"
      for name, (c, again) in found.items()
    ),
  ]
  return "\n".join(rows)


def main() -> None:
  """Compiles, prints and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
  parser.add_argument(
    "--optimizers",
    nargs="+",
    choices=OPTIMIZERS,
    default=list(OPTIMIZERS),
    help="beside adam",
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  options = parser.parse_args()
  record = {}
  names = dict.fromkeys(["adam", *options.optimizers])
  programs = len(options.networks) * len(names)
  with tempfile.TemporaryDirectory() as folder, tqdm(total=programs) as bar:
    stored(folder)
    for network in options.networks:
      found = {}
      for name in names:
        found[name] = twice(OPTIMIZERS[name](), parameters(network))
        bar.update()
      bar.write(table(network, found))
      record[network] = {
        name: c._asdict() | {"again": again.total} for name, (c, again) in found.items()
      }
  options.out.mkdir(parents=True, exist_ok=True)
  path = options.out / "compilation.json"
  path.write_text(json.dumps(environment() | {"compilation": record}, indent=1) + "\n")
  print(f"wrote {path}")


if __name__ == "__main__":
  main()
