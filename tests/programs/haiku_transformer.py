"""A transformer that predicts the next character of a text.

After examples/transformer of google-deepmind/dm-haiku: norms before attention and
before the dense block, dropout, learned positions, untied output weights, clipping and
Adam at 3e-4 with b2 of 0.99 in a chain that is built anew inside the jitted functions
and updates without parameters, batches of two. Smaller here: the layers, and
scikit-learn's description of its digits for Shakespeare.
"""

import haiku as hk
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

BATCH, LENGTH, VOCABULARY = 2, 64, 128
LAYERS, HEADS, MODEL, KEY, DROPOUT = 2, 4, 32, 8, 0.1


def norm(x):
  return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)


def dropout(x):
  return hk.dropout(hk.next_rng_key(), DROPOUT, x)


def transformer(x):
  init = hk.initializers.VarianceScaling(2 / LAYERS)
  mask = np.tril(np.ones((1, 1, x.shape[1], x.shape[1])))
  for _ in range(LAYERS):
    attention = hk.MultiHeadAttention(HEADS, KEY, w_init=init, model_size=MODEL)
    y = norm(x)
    x = x + dropout(attention(y, y, y, mask=mask))
    widen, narrow = hk.Linear(4 * MODEL, w_init=init), hk.Linear(MODEL, w_init=init)
    x = x + dropout(narrow(jax.nn.gelu(widen(norm(x)))))
  return norm(x)


@hk.transform
def loss_fn(text):
  tokens, targets = text[:, :-1], text[:, 1:]
  init = hk.initializers.TruncatedNormal(stddev=0.02)
  positions = hk.get_parameter("positional_embeddings", [LENGTH, MODEL], init=init)
  x = hk.Embed(VOCABULARY, MODEL, w_init=init)(tokens) + positions
  logits = hk.Linear(VOCABULARY)(transformer(x))
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def batches(rng):
  text = np.frombuffer(load_digits().DESCR.encode("ascii", "ignore"), np.uint8)
  while True:
    starts = rng.integers(len(text) - LENGTH, size=BATCH)
    yield text[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)


def main(optimizer, steps):
  def optimiser():
    return optax.chain(optax.clip_by_global_norm(1), optimizer(3e-4, b1=0.9, b2=0.99))

  @jax.jit
  def init(key, text):
    params = loss_fn.init(key, text)
    return params, optimiser().init(params)

  @jax.jit
  def update(params, state, key, text):
    loss, gradients = jax.value_and_grad(loss_fn.apply)(params, key, text)
    updates, state = optimiser().update(gradients, state)
    return optax.apply_updates(params, updates), state, loss

  texts = batches(np.random.default_rng(0))
  key = jax.random.key(0)
  params, state = init(key, next(texts))
  losses = []
  for step in range(steps):
    params, state, loss = update(
      params, state, jax.random.fold_in(key, step), next(texts)
    )
    losses.append(float(loss))
  return losses
