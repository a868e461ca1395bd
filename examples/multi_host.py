"""Two processes that train one model, as two hosts with accelerators would.

Every process holds half of the mini-batch, of the parameters, and of MBF's statistics.
"""

import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import tqdm
from data import batches, load
from jax.sharding import NamedSharding, PartitionSpec
from models import Autoencoder

from mbf_optax import mbf_adam

PROCESSES = 2


def main(process: int, coordinator: str, steps: int = 100) -> None:
  """Trains an autoencoder on digits, as one of the processes."""
  jax.distributed.initialize(coordinator, PROCESSES, process)
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((jax.device_count(),), ("hosts",), axis_types=(auto,))
  examples = NamedSharding(mesh, PartitionSpec("hosts"))

  def layout(leaf):
    """Divides what has an even last axis: neurons and their biases."""
    even = leaf.ndim > 0 and leaf.shape[-1] % mesh.size == 0
    spec = [None] * (leaf.ndim - 1) + ["hosts"] if even else []
    return NamedSharding(mesh, PartitionSpec(*spec))

  data = load("digits")
  model = Autoencoder(widths=(256, 16, 256))
  tx = mbf_adam(learning_rate=0.01)

  def loss_fn(params, x):
    logits = model.apply(params, x)
    return optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2, 3)).mean()

  @jax.jit
  def train_step(params, state, x):
    loss, gradients = jax.value_and_grad(loss_fn)(params, x)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  with jax.set_mesh(mesh):
    params = model.init(jax.random.key(0), data.x_train[:1])
    params = jax.device_put(params, jax.tree.map(layout, params))
    state = tx.init(params)  # is laid out like the parameters
    bar = tqdm.tqdm(batches(data, 128, steps), total=steps, disable=process > 0)
    for x, _ in bar:
      mine = np.split(x, PROCESSES)[process]
      x = jax.make_array_from_process_local_data(examples, mine)
      params, state, loss = train_step(params, state, x)
      bar.set_postfix(loss=f"{loss:.2f}")
  leaves = jax.tree.leaves(state)
  here = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
  everywhere = sum(leaf.nbytes for leaf in leaves)
  print(
    f"process {process}: loss {loss:.4f}, holds {here / 1000:.0f} of"
    f" {everywhere / 1000:.0f} kB of optimizer state"
  )
  jax.distributed.shutdown()


def start(steps: int = 100) -> None:
  """Starts every process on this machine and waits for them."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen([sys.executable, __file__, str(k), coordinator, str(steps)])
    for k in range(PROCESSES)
  ]
  try:
    if any(process.wait() for process in processes):
      raise SystemExit("a process failed")
  finally:
    for process in processes:
      process.kill()


if __name__ == "__main__":
  if len(sys.argv) > 1:
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
  else:
    start()
