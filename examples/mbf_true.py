"""MBF-True: statistics from labels that are sampled from the model itself.

The empirical Fisher matrix uses the gradient at the data's labels. A second gradient,
at labels sampled from the model's own distribution, gives the statistics of the Fisher
matrix proper, at the price of a second backward pass.
"""

import jax
import optax
import tqdm
from data import batches, load
from models import Convnet
from report import curves

from mbf_optax import mbf, sample_labels


def main(steps: int = 200) -> None:
  """Trains a convnet on digits with the statistics of either kind."""
  data = load("digits")
  model = Convnet()
  tx = mbf(learning_rate=3e-4, damping=3e-3)

  def loss_fn(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

  init = jax.jit(model.init)

  @jax.jit
  def mbf_step(params, state, x, y, key):
    (loss, _), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, x, y)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  @jax.jit
  def mbf_true_step(params, state, x, y, key):
    (loss, logits), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, x, y)
    sampled = sample_labels(logits, key)
    curvature_gradients, _ = jax.grad(loss_fn, has_aux=True)(params, x, sampled)
    updates, state = tx.update(
      gradients, state, params, curvature_gradients=curvature_gradients
    )
    return optax.apply_updates(params, updates), state, loss

  losses = {}
  for name, train_step in {"mbf": mbf_step, "mbf-true": mbf_true_step}.items():
    params = init(jax.random.key(0), data.x_train[:1])
    state = tx.init(params)
    keys = jax.random.split(jax.random.key(1), steps)
    losses[name] = []
    steps_of_data = zip(keys, batches(data, 128, steps), strict=True)
    for key, (x, y) in tqdm.tqdm(steps_of_data, desc=name, total=steps):
      params, state, loss = train_step(params, state, x, y, key)
      losses[name].append(float(loss))
    accuracy = (model.apply(params, data.x_test).argmax(-1) == data.y_test).mean()
    print(f"{name}: held-out accuracy {accuracy:.1%}")

  curves(losses, "results/mbf_true.png")


if __name__ == "__main__":
  main()
