"""The shortest training loop with Flax Linen."""

import jax
import optax
import tqdm
from data import batches, load
from models import Convnet
from report import curves

from mbf_optax import mbf_adam


def main(steps: int = 200) -> None:
  """Trains a convnet on digits."""
  data = load("digits")
  model = Convnet()
  params = jax.jit(model.init)(jax.random.key(0), data.x_train[:1])
  tx = mbf_adam(learning_rate=0.01)  # was optax.adam(learning_rate=0.01)
  state = tx.init(params)

  def loss_fn(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jax.jit
  def train_step(params, state, x, y):
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  losses = []
  for x, y in tqdm.tqdm(batches(data, 128, steps), total=steps):
    params, state, loss = train_step(params, state, x, y)
    losses.append(float(loss))

  accuracy = (model.apply(params, data.x_test).argmax(-1) == data.y_test).mean()
  print(f"held-out accuracy: {accuracy:.1%}")
  curves({"mbf_adam": losses}, "results/flax_linen.png")


if __name__ == "__main__":
  main()
