"""Metrics of every layer at every step, for TensorBoard.

How far each layer's gradient persists and what share of the exponent that leaves, how
ill-conditioned the preconditioner is, how far the layer moves, and how far its step
turns from the gradient. Look at them with ``tensorboard --logdir results/tensorboard``.
"""

import jax
import optax
import tqdm
from data import batches, load
from models import Convnet
from report import curves
from tensorboardX import SummaryWriter

from mbf_optax import mbf_adam, metrics

FOLDER = "results/tensorboard"


def main(steps: int = 200) -> None:
  """Trains a convnet on digits and writes down what happens inside."""
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

  losses = []
  with SummaryWriter(FOLDER) as writer:
    for x, y in tqdm.tqdm(batches(data, 128, steps), total=steps):
      params, state, loss, layers = train_step(params, state, x, y)
      step = len(losses)
      losses.append(float(loss))
      writer.add_scalar("loss", losses[-1], step)
      for path, layer in jax.device_get(layers).items():
        for name, value in layer._asdict().items():
          writer.add_scalar(f"{path}/{name}", value, step)

  for path, layer in layers.items():
    print(
      f"{path}: persistence {layer.persistence:.2f}, exponent {layer.exponent:.2f},"
      f" condition {layer.condition:.1f}, cosine {layer.cosine:.2f}"
    )
  print(f"metrics: {FOLDER}")
  curves({"mbf_adam": losses}, "results/tensorboard_metrics.png")


if __name__ == "__main__":
  main()
