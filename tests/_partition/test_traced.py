"""Plain jax models: the block axes written down here are the ones that are traced."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests._partition.traced import (
  RMS,
  array,
  dense,
  mean,
  read,
)

pytestmark = pytest.mark.promotes  # models are written as users write them

X = array(3, 4)


def layers(params, x):
  for w, b in params:
    x = jax.nn.relu(x @ w + b)
  return x


def test_a_list_of_weights_and_biases():
  params = [(array(4, 8), array(8)), (array(8, 2), array(2))]
  assert read(mean(layers), params, X) == {
    "0/0": dense((0,), bias="0/1", axes=(1,)),
    "1/0": dense((0,), bias="1/1", axes=(1,)),
  }


def test_transposed_scaled_and_cast_weights():
  def model(p, x):
    w = -2.0 * p["w"].astype(jnp.bfloat16).T
    y = jnp.einsum("oi,bi->ob", w.T.reshape(2, 5, 4).reshape(10, 4), x)
    return (y.astype(jnp.float32) / 3).T + p["b"]

  expected = {"w": dense((1,), bias="b", axes=(0,))}
  params = {"w": array(10, 4), "b": array(10)}
  assert read(mean(model), params, array(3, 4, dtype=jnp.bfloat16)) == expected


def test_einsums_with_axes_in_odd_orders():
  def model(p, x):
    q = jnp.einsum("btd,hdk->bhtk", x, p["q"]) + p["bq"][:, None]
    scores = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, q))
    y = jnp.einsum("bhts,bhsk->bthk", scores, q)
    return jnp.einsum("bthk,khe->bte", y, p["o"]) + p["bo"]

  params = {
    "q": array(2, 6, 3),
    "bq": array(2, 3),
    "o": array(3, 2, 6),
    "bo": array(6),
  }
  assert read(mean(model), params, array(2, 5, 6)) == {
    "q": dense((1,), bias="bq", axes=(0, 2)),
    "o": dense((0, 1), bias="bo", axes=(2,)),
  }


def test_a_split_of_a_fused_projection():
  """``(d, 3 h k)``, reshaped and split; a bias for each part as one array."""

  def model(p, x):
    qkv = (x @ p["w"] + p["b"]).reshape(*x.shape[:2], 3, 2, 3)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    return jnp.einsum("bthk,bshk,bshl->bthl", q, k, v)

  params = {"w": array(6, 18), "b": array(18)}
  expected = {"w": dense((0,), bias="b", axes=(1,))}
  assert read(mean(model), params, array(2, 5, 6)) == expected


def test_slices_of_a_fused_weight():
  def model(p, x):
    gates = x @ p["w"][:, :8] + p["b"][:8]
    return gates[:, :4] + x @ p["w"][:, 8:] + p["b"][8:]

  params = {"w": array(4, 12), "b": array(12)}
  expected = {"w": dense((0,), bias="b", axes=(1,))}
  assert read(mean(model), params, X) == expected


def test_concatenated_weights():
  def model(p, x):
    w = jnp.concatenate([p["q"], p["k"]], axis=1)
    b = jnp.concatenate([p["bq"], p["bk"]])
    q, k = jnp.split(x @ w + b, [5], axis=1)
    return q[:, :3] * k

  params = {"q": array(4, 5), "k": array(4, 3), "bq": array(5), "bk": array(3)}
  assert read(mean(model), params, X) == {
    "q": dense((0,), bias="bq", axes=(1,)),
    "k": dense((0,), bias="bk", axes=(1,)),
  }


def test_concatenated_biases_belong_to_the_weights_at_their_places():
  def model(p, x):
    w = jnp.concatenate([p["q"], p["k"]], axis=1)
    return x @ w + jnp.concatenate([p["first"], p["second"]])

  params = {"q": array(4, 5), "k": array(4, 5), "first": array(5), "second": array(5)}
  assert read(mean(model), params, X) == {
    "q": dense((0,), bias="first", axes=(1,)),
    "k": dense((0,), bias="second", axes=(1,)),
  }


LORA = {"a": array(4, 2), "b": array(2, 6)}


def test_lora():
  def model(p, x, w):
    return x @ w + 2.0 * (x @ p["a"] @ p["b"])

  expected = {"a": dense((0,)), "b": dense((0,))}
  assert read(mean(model), LORA, X, array(4, 6)) == expected


@pytest.mark.parametrize("frozen", [True, False])
def test_lora_merged_into_its_weight(frozen):
  """Each factor is read from the product of the two."""

  def model(p, x, w):
    w = w if frozen else p["w"]
    return x @ (w + 2.0 * (p["a"] @ p["b"])) + p["bias"]

  expected = {"a": dense((1,)), "b": dense((0,)), "bias": RMS}
  if not frozen:
    expected |= {"w": dense((0,), bias="bias", axes=(1,))}
    del expected["bias"]
  params = LORA | {"bias": array(6)} | ({} if frozen else {"w": array(4, 6)})
  assert read(mean(model), params, X, array(4, 6)) == expected


def test_experts():
  """Tokens sorted to experts, and every expert on every token."""

  def model(p, x):
    hidden = jnp.einsum("ecd,edf->ecf", x, p["up"]) + p["b"][:, None]
    return jnp.einsum("ecf,edf->ecd", jax.nn.relu(hidden), p["down"])

  params = {"up": array(5, 4, 8), "b": array(5, 8), "down": array(5, 4, 8)}
  assert read(mean(model), params, array(5, 3, 4)) == {
    "up": dense((1,), (0,), "b", (0, 2)),
    "down": dense((2,), (0,)),
  }


def test_grouped_products_of_experts():
  def model(p, x, sizes):
    return lax.ragged_dot(jax.nn.relu(lax.ragged_dot(x, p[0], sizes)), p[1], sizes)

  params = [array(5, 4, 8), array(5, 8, 4)]
  args = (array(3, 4), array(5, dtype=jnp.int32))
  expected = {"0": dense((1,), (0,)), "1": dense((1,), (0,))}
  assert read(mean(model), params, *args) == expected


def test_an_expert_taken_for_each_token():
  def model(p, x, expert):
    return jax.vmap(lambda x, e: x @ p["w"][e] + p["b"][e])(x, expert)

  params = {"w": array(5, 4, 6), "b": array(5, 6)}
  assert read(mean(model), params, X, array(3, dtype=jnp.int32))["w"] == dense(
    (1,), (0,)
  )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scans_over_any_axis(axis):
  def model(p, x):
    def body(x, layer):
      return jax.checkpoint(lambda x: jnp.tanh(x @ layer["w"] + layer["b"]))(x), None

    stacked = {"w": jnp.moveaxis(p["w"], axis, 0), "b": p["b"].T}
    return lax.scan(body, x, stacked)[0]

  shape = [4, 4]
  shape.insert(axis, 7)
  block, out = [i for i in range(3) if i != axis]
  assert read(mean(model), {"w": array(*shape), "b": array(4, 7)}, X) == {
    "w": dense((block,), (axis,), "b", (out, axis))
  }


def test_scanned_weights_of_two_loops():
  """Layers in groups: both axes stack."""

  def model(p, x):
    def step(x, w):
      return (jnp.tanh(x @ w), None)

    return lax.scan(lambda x, ws: lax.scan(step, x, ws), x, p["w"])[0]

  assert read(mean(model), {"w": array(2, 3, 4, 4)}, X) == {"w": dense((2,), (0, 1))}


def test_a_loop_with_its_weights_closed_over_carried_or_indexed():
  def model(p, x):
    x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ p["closed"]), None), x, None, 3)

    def step(i, c):
      return (jnp.tanh(c[0] @ c[1]), c[1])

    x, _ = lax.fori_loop(0, 3, step, (x, p["carried"]))
    x = lax.fori_loop(0, 5, lambda i, x: x @ p["indexed"][i] + p["b"][i], x)
    return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ p["tested"], x)

  square = array(4, 4)
  params = {
    "closed": square,
    "carried": square,
    "tested": square,
    "indexed": array(5, 4, 4),
    "b": array(5, 4),
  }
  assert read(mean(model), params, X) == {
    "closed": dense((0,)),
    "carried": dense((0,)),
    "tested": dense((0,)),
    "indexed": dense((1,), (0,), "b", (0, 2)),
  }


def test_unrolled_layers_of_one_array():
  def model(p, x):
    for i in range(3):
      x = jnp.tanh(x @ p["w"][:, i].T + p["b"][i])
    return x

  expected = {"w": dense((2,), (1,), "b", (1, 0))}
  assert read(mean(model), {"w": array(4, 3, 4), "b": array(3, 4)}, X) == expected


def test_an_ensemble():
  params = [(array(5, 4, 8), array(5, 8)), (array(5, 8, 2), array(5, 2))]
  assert read(mean(jax.vmap(layers)), params, array(5, 3, 4)) == {
    "0/0": dense((1,), (0,), "0/1", (0, 2)),
    "1/0": dense((1,), (0,), "1/1", (0, 2)),
  }


@pytest.mark.parametrize("shared", [True, False])
def test_an_ensemble_of_deep_networks(shared):
  """The first layer of networks that see the same inputs stacks layers as well."""
  network = jax.vmap(layers, in_axes=(0, None if shared else 0))
  shapes = [(4, 8), (8, 6), (6, 2)]
  params = [(array(5, *shape), array(5, shape[1])) for shape in shapes]
  x = X if shared else array(5, 3, 4)
  assert read(mean(network), params, x) == {
    f"{i}/0": dense((1,), (0,), f"{i}/1", (0, 2)) for i in range(3)
  }


def test_every_expert_on_every_token():
  def model(p, x):
    hidden = jax.nn.relu(jnp.einsum("td,edf->tef", x, p["up"]))
    return jnp.einsum("tef,efd->ted", hidden, p["down"]).mean(1)

  params = {"up": array(5, 4, 8), "down": array(5, 8, 4)}
  expected = {"up": dense((1,), (0,)), "down": dense((1,), (0,))}
  assert read(mean(model), params, X) == expected


def test_custom_derivatives():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

  @jax.custom_jvp
  def other(x, w):
    return jnp.tanh(x @ w)

  other.defjvp(lambda xs, ts: (other(*xs), ts[0] @ xs[1] + xs[0] @ ts[1]))

  def model(p, x):
    return other(product(x, p["v"]) + p["b"], p["w"])

  params = {"v": array(4, 6), "b": array(6), "w": array(6, 2)}
  assert read(mean(model), params, X) == {
    "v": dense((0,), bias="b", axes=(1,)),
    "w": dense((0,)),
  }


def test_gradients_inside_the_loss():
  """As for a differential equation, or a gradient penalty."""
  params = [(array(4, 8), array(8)), (array(8, 1), array(1))]

  def loss(p, x):
    def u(x):
      return layers(p, x[None])[0, 0]

    laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(u)(x)))(x)
    return jnp.mean((laplacian + jax.vmap(jax.grad(u))(x).sum(1)) ** 2)

  assert read(loss, params, X) == {
    "0/0": dense((0,), bias="0/1", axes=(1,)),
    "1/0": dense((0,), bias="1/1", axes=(1,)),
  }


def test_gradients_of_compiled_functions_inside_the_loss():
  """Equations inside a call that is reversed as a whole say nothing either."""

  def loss(p, x):
    u = jax.jit(lambda x: jnp.tanh(jax.jit(jnp.dot)(x, p["w"])).sum())
    return jnp.mean(jax.grad(u)(x) ** 2)

  assert read(loss, {"w": array(4, 8)}, X) == {"w": dense((0,))}


def test_normalised_masked_and_noisy_weights():
  def loss(p, x, mask, key):
    w = p["w"] / jnp.linalg.norm(p["w"], axis=0) * p["g"]
    y = x @ (w * mask) + p["b"]
    noisy = p["v"] + jnp.exp(p["s"]) * jax.random.normal(key, p["v"].shape)
    return jnp.mean((y @ noisy) ** 2) + 1e-3 * jnp.sum(p["w"] ** 2)

  params = {
    "w": array(4, 6),
    "g": array(6),
    "b": array(6),
    "v": array(6, 2),
    "s": array(6, 2),
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  assert read(loss, params, X, array(4, 6), key) == {
    "w": dense((0,), bias="b", axes=(1,)),
    "g": RMS,
    "v": dense((0,)),
    "s": dense((0,)),
  }


def test_adapted_weights():
  """One step of gradient descent inside the loss, as in meta-learning."""

  def loss(p, x):
    inner = mean(layers)
    adapted = jax.tree.map(lambda p, g: p - 0.1 * g, p, jax.grad(inner)(p, x))
    return inner(adapted, x)

  params = [(array(4, 8), array(8)), (array(8, 2), array(2))]
  traced = read(loss, params, X)
  assert (traced["0/0"][:3], traced["1/0"][:3]) == (dense((0,)), dense((0,)))
