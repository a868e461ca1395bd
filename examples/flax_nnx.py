"""The shortest training loop with Flax NNX."""

import jax
import optax
import tqdm
from data import batches, load
from flax import nnx
from report import curves

from mbf_optax import mbf_adam


class Convnet(nnx.Module):
  """Two strided 3 x 3 convolutions and two dense layers, for images of 8 x 8."""

  def __init__(self, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
    self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
    self.hidden = nnx.Linear(128, 64, rngs=rngs)
    self.logits = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits ``(n, 10)``."""
    x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
    return self.logits(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def main(steps: int = 200) -> None:
  """Trains a convnet on digits."""
  data = load("digits")
  model = Convnet(nnx.Rngs(0))
  # was optax.adam(learning_rate=0.01)
  optimizer = nnx.Optimizer(model, mbf_adam(learning_rate=0.01), wrt=nnx.Param)

  def loss_fn(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

  @nnx.jit
  def train_step(model, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(loss_fn)(model, x, y)
    optimizer.update(model, gradients)
    return loss

  losses = []
  for x, y in tqdm.tqdm(batches(data, 128, steps), total=steps):
    losses.append(float(train_step(model, optimizer, x, y)))

  accuracy = (model(data.x_test).argmax(-1) == data.y_test).mean()
  print(f"held-out accuracy: {accuracy:.1%}")
  curves({"mbf_adam": losses}, "results/flax_nnx.png")


if __name__ == "__main__":
  main()
