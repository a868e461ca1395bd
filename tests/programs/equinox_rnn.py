"""A recurrent network that tells clockwise from anticlockwise spirals.

After docs/examples/train_rnn.ipynb of patrick-kidger/equinox: a GRU cell of 16 units in
a scan, a linear layer whose bias is an array of the model's own, binary cross-entropy
of a sigmoid, Adam at 3e-3 and batches of 32. Smaller here: the number of spirals.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

SPIRALS, LENGTH, BATCH, HIDDEN = 1000, 16, 32, 16


def spirals(rng):
  """Half of them mirrored, and labelled zero."""
  time = np.linspace(0, 2 * np.pi, LENGTH)
  angles = time + rng.uniform(0, 2 * np.pi, (SPIRALS, 1))
  x = np.stack([np.sin(angles), np.cos(angles)], -1) / (1 + time)[:, None]
  y = np.arange(SPIRALS)[:, None] >= SPIRALS // 2
  x[..., 0] *= np.where(y, 1, -1)
  return x.astype(np.float32), y.astype(np.float32)


class RNN(eqx.Module):
  cell: eqx.nn.GRUCell
  linear: eqx.nn.Linear
  bias: jax.Array

  def __init__(self, key):
    cell_key, linear_key = jax.random.split(key)
    self.cell = eqx.nn.GRUCell(2, HIDDEN, key=cell_key)
    self.linear = eqx.nn.Linear(HIDDEN, 1, use_bias=False, key=linear_key)
    self.bias = jnp.zeros(1)

  def __call__(self, sequence):
    def advance(hidden, x):
      return self.cell(x, hidden), None

    hidden, _ = jax.lax.scan(advance, jnp.zeros(HIDDEN), sequence)
    return jax.nn.sigmoid(self.linear(hidden) + self.bias)


@eqx.filter_value_and_grad
def loss_fn(model, x, y):
  p = jax.vmap(model)(x)
  return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).mean()


def main(optimizer, steps):
  rng = np.random.default_rng(0)
  xs, ys = spirals(rng)
  model = RNN(jax.random.key(5678))
  optim = optimizer(3e-3)
  state = optim.init(eqx.filter(model, eqx.is_array))

  @eqx.filter_jit
  def make_step(model, state, x, y):
    loss, gradients = loss_fn(model, x, y)
    updates, state = optim.update(gradients, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, loss

  losses = []
  for _ in range(steps):
    batch = rng.choice(SPIRALS, BATCH, replace=False)
    model, state, loss = make_step(model, state, xs[batch], ys[batch])
    losses.append(float(loss))
  return losses
