"""Statistics from a pass over the data before the first step.

A rarely refreshed inverse is cheap, but the first ones rest on very few gradients. A
warm start gives them the mean over a pass of mini-batches.
"""

import jax
import optax
import tqdm
from data import batches, load
from models import Autoencoder
from report import curves

from mbf_optax import mbf, warm_start


def main(steps: int = 200) -> None:
  """Trains an autoencoder on digits from a cold start and from a warm one."""
  data = load("digits")
  model = Autoencoder()
  tx = mbf(learning_rate=2e-4, damping=3e-3, inverse_update_period=20)

  def loss_fn(params, x):
    logits = model.apply(params, x)
    return optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2, 3)).mean()

  init = jax.jit(model.init)
  gradient = jax.jit(jax.grad(loss_fn))

  @jax.jit
  def train_step(params, state, x):
    loss, gradients = jax.value_and_grad(loss_fn)(params, x)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  losses = {"cold start": [], "warm start": []}
  for start, history in losses.items():
    params = init(jax.random.key(0), data.x_train[:1])
    state = tx.init(params)
    if start == "warm start":
      gradients = (gradient(params, x) for x, _ in batches(data, 128, steps=11))
      state = warm_start(tx, state, params, gradients)
    for x, _ in tqdm.tqdm(batches(data, 128, steps), desc=start, total=steps):
      params, state, loss = train_step(params, state, x)
      history.append(float(loss))

  for start, history in losses.items():
    print(f"{start}: last mini-batch's loss {history[-1]:.2f}")
  curves(losses, "results/warm_start.png")


if __name__ == "__main__":
  main()
