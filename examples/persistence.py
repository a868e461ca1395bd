"""How much of each layer's gradient its momentum foretold, and what follows from it.

Persistence is near one while the gradient keeps its direction, as in the first steps:
then `mbf_adam` moves along Adam's momentum. It falls to zero where the gradient is
noise or oscillates: then the matrices act with the whole `exponent`.
"""

import jax
import optax
import tqdm
from data import batches, load
from models import Convnet
from report import panels

from mbf_optax import mbf_adam, metrics


def main(steps: int = 200) -> None:
  """Trains a convnet on digits and draws what its layers' gradients do."""
  data = load("digits")
  model = Convnet()
  params = jax.jit(model.init)(jax.random.key(0), data.x_train[:1])
  tx = mbf_adam(learning_rate=0.01)
  state = tx.init(params)

  def loss_fn(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jax.jit
  def train_step(params, state, x, y):
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(gradients, state, params)
    layers = metrics(state, gradients, updates)
    return optax.apply_updates(params, updates), state, loss, layers

  losses, history = [], []
  for x, y in tqdm.tqdm(batches(data, 128, steps), total=steps):
    params, state, loss, layers = train_step(params, state, x, y)
    losses.append(float(loss))
    history.append(jax.device_get(layers))

  def by_layer(name):
    return {
      path.removeprefix("params/"): [float(getattr(now[path], name)) for now in history]
      for path in layers
    }

  persistence = by_layer("persistence")
  for path, values in persistence.items():
    early, late = (sum(part) / len(part) for part in (values[:20], values[-20:]))
    print(
      f"{path}: persistence {early:.2f} in the first 20 steps, {late:.2f} in the last"
    )
  panels(
    {
      "training loss": {"mbf_adam": losses},
      "persistence": persistence,
      "share of the exponent": by_layer("exponent"),
    },
    "results/persistence.png",
  )


if __name__ == "__main__":
  main()
