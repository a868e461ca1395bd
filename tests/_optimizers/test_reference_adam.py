"""The oracle of `mbf_adam` itself: closed forms, and optax's Adam where it is Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.reference import Layer
from tests.reference_adam import MbfAdamReference, evidence, pieces, shrunk_power

SHAPE = (7, 6)
DENSE = Layer("dense", "w", estimator="shared")


def noise(steps, shape=SHAPE, seed=0):
  return np.random.default_rng(seed).normal(size=(steps, *shape))


def run(gradients, layers=(DENSE,), **hyper):
  """The updates of a stream of gradients, and kappa and the exponents after each."""
  oracle = MbfAdamReference(layers, **hyper)
  updates, kappas, exponents = [], [], []
  for g in gradients:
    updates.append(oracle.update(g if isinstance(g, dict) else {"w": g}))
    kappas.append(oracle.persistence["w"][0])
    exponents.append(oracle.exponents["w"][0])
  return updates, np.array(kappas), np.array(exponents)


def test_persistence_of_a_constant_gradient_is_one():
  """So the update is the gradient, each neuron's as long as a vector of ones."""
  g = noise(1)[0]
  updates, kappas, exponents = run([g] * 20, inverse_update_period=1)
  np.testing.assert_allclose(kappas, 1, rtol=1e-12)
  np.testing.assert_allclose(exponents, 0, atol=1e-6)
  expected = g * np.sqrt(len(g)) / np.linalg.norm(g, axis=0)
  np.testing.assert_allclose(updates[-1]["w"], expected, rtol=1e-5)


def test_persistence_of_noise_is_about_zero():
  _, kappas, _ = run(noise(30, (100, 300)), inverse_update_period=100)
  assert kappas[0] == 1
  assert np.all(kappas[1:] < 0.02)


def test_persistence_of_an_alternating_gradient_is_zero_after_the_first_step():
  signs = (-1.0) ** np.arange(20)
  _, kappas, exponents = run(signs[:, None, None] * noise(1))
  np.testing.assert_array_equal(kappas, [1] + 19 * [0])
  np.testing.assert_array_equal(exponents[1:, 0], 0.75)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_persistence_of_a_geometric_gradient(ratio):
  """Without momentum r is the ratio of the shorter gradient to the longer one."""
  scales = ratio ** np.arange(12)
  _, kappas, exponents = run(
    scales[:, None, None] * noise(1), b1=0, inverse_update_period=1, exponent=1.0
  )
  np.testing.assert_allclose(kappas, [1] + 11 * [0.5])
  np.testing.assert_allclose(exponents[1:, 0], 1 - np.sqrt(0.5))


def test_persistence_forgets_by_a_tenth_a_step():
  still = noise(1)[0]
  _, kappas, _ = run([still] * 3 + [0 * still] * 4, b1=0)
  past = 1 - 0.9**2
  expected = [past * 0.9**i / (1 - 0.9 ** (2 + i)) for i in range(5)]
  np.testing.assert_allclose(kappas[2:], expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_blocks_of_one_element_and_single_elements_are_optax_adam(nesterov):
  layers = [Layer("dense", "w", estimator="full"), Layer("elementwise", "b")]
  gradients = [
    {"w": w, "b": b} for w, b in zip(noise(15, (1, 5)), noise(15, (3,)), strict=True)
  ]
  hyper = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-2, "nesterov": nesterov}
  updates, _, _ = run(gradients, layers, **hyper)
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    tx = optax.scale_by_adam(**hyper)
    state = tx.init(jax.tree.map(jnp.asarray, gradients[0]))
    for g, ours in zip(gradients, updates, strict=True):
      theirs, state = tx.update(jax.tree.map(jnp.asarray, g), state)
      for name, update in theirs.items():
        np.testing.assert_allclose(ours[name], update, rtol=1e-12)


def test_refreshes_double_and_then_keep_the_period():
  _, _, exponents = run(noise(33) + noise(1, seed=1), inverse_update_period=10)
  changed = np.flatnonzero(np.diff(exponents[:, 0])) + 2
  np.testing.assert_array_equal(changed, [2, 4, 8, 11, 21, 31])


def test_powers_of_a_shrunk_matrix():
  """Of diag(1, 3), scaled to (1/2, 3/2) and shrunk by 2 / (2 + 6)."""
  power = shrunk_power(np.diag([1.0, 3.0]), gradients=6, damping=0.1, exponent=0.5)
  np.testing.assert_allclose(power, np.diag([0.725**-0.5, 1.475**-0.5]))


def test_evidence_is_the_number_of_gradients_that_an_average_is_worth():
  assert evidence(0.9, 1) == pytest.approx(1)
  weights = 0.1 * 0.9 ** np.arange(5)
  assert evidence(0.9, 5) == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))
  assert evidence(0.9, 1000) == pytest.approx(19)


@pytest.mark.parametrize(("estimator", "sharing"), [("full", 1), ("shared", 6)])
def test_every_block_that_shares_a_matrix_is_evidence(estimator, sharing):
  """Six equal neurons: the same statistics, of one gradient a step or of six."""
  first, second = noise(2, (7, 1))
  layer = Layer("dense", "w", estimator=estimator)
  updates, _, exponents = run([first.repeat(6, 1), second.repeat(6, 1)], [layer])
  statistic = (0.99 * first @ first.T + second @ second.T) / 1.99
  power = shrunk_power(statistic, sharing * evidence(0.99, 2), 0.1, exponents[1, 0])
  expected = power @ (0.9 * first + second)
  actual = updates[1]["w"][:, 2]
  np.testing.assert_allclose(
    actual / np.linalg.norm(actual), expected[:, 0] / np.linalg.norm(expected)
  )


@pytest.mark.parametrize(
  ("limit", "lengths"),
  [(None, [10]), (10, [10]), (9, [5, 5]), (4, [4, 4, 2]), (3, [3, 3, 3, 1])],
)
def test_pieces_are_equal_but_for_the_last(limit, lengths):
  cut = [np.arange(10)[piece] for piece in pieces(10, limit)]
  assert [len(piece) for piece in cut] == lengths
  np.testing.assert_array_equal(np.concatenate(cut), np.arange(10))


@pytest.mark.parametrize("limit", [3, 4])
def test_pieces_are_layers_of_their_own_but_for_the_persistence(limit):
  """All pieces of a geometric gradient persist alike."""
  gradients = 0.2 ** np.arange(6)[:, None, None] * noise(1)
  whole, _, _ = run(gradients, b1=0, block_limit=limit, eps=0)
  for piece in pieces(7, limit):
    own, _, _ = run(gradients[:, piece], b1=0, eps=0)
    for ours, theirs in zip(whole, own, strict=True):
      np.testing.assert_allclose(ours["w"][piece], theirs["w"])


@pytest.mark.parametrize("limit", [None, 4])
def test_both_sides_of_the_transposed_layer_are_the_same_exchanged(limit):
  both = [Layer("dense", "w", estimator="both")]
  gradients = noise(12)
  once, _, exponents = run(
    gradients, both, exponent=1.0, output_exponent=0.3, block_limit=limit
  )
  twice, _, exchanged = run(
    gradients.swapaxes(1, 2), both, exponent=0.3, output_exponent=1.0, block_limit=limit
  )
  np.testing.assert_allclose(exponents, exchanged[:, ::-1])
  for ours, theirs in zip(once, twice, strict=True):
    np.testing.assert_allclose(ours["w"], theirs["w"].T)


@pytest.mark.parametrize(
  ("estimator", "axes"), [("full", (0,)), ("shared", (0,)), ("both", (0, 1))]
)
def test_lengths_are_adams(estimator, axes):
  gradients = noise(12)
  ours, _, _ = run(gradients, [Layer("dense", "w", estimator=estimator)])
  theirs = MbfAdamReference([Layer("elementwise", "w")])
  for g, update in zip(gradients, ours, strict=True):
    adam = theirs.update({"w": g})["w"]
    lengths = np.sum(adam**2, axis=axes)
    np.testing.assert_allclose(np.sum(update["w"] ** 2, axis=axes), lengths)
  assert np.abs(update["w"] - adam).max() > 0.01 * np.abs(adam).max()


@pytest.mark.parametrize("estimator", ["full", "shared", "both"])
def test_a_bias_is_one_more_input_and_a_stack_holds_layers_of_their_own(estimator):
  gradients = noise(12)
  alone, kappas, _ = run(gradients, [Layer("dense", "w", estimator=estimator)])
  stack = Layer("dense", "w", "b", estimator=estimator, stacked=True)
  oracle = MbfAdamReference([stack])
  for g, expected in zip(gradients, alone, strict=True):
    w, b = np.stack([0 * g, g]), np.stack([3 * g, g])
    updates = oracle.update({"w": w[:, :-1], "b": b[:, -1]})
    np.testing.assert_allclose(updates["w"][1], expected["w"][:-1])
    np.testing.assert_allclose(updates["b"][1], expected["w"][-1])
  assert oracle.persistence["w"][1] == pytest.approx(kappas[-1])


def test_statistics_take_their_own_gradients_at_their_own_steps():
  gradients, others = noise(12), noise(12, seed=1)
  results = []
  for ignored in (others, 100 * others):
    oracle = MbfAdamReference([DENSE], curvature_update_period=3)
    for k, g in enumerate(gradients):
      curvature = others[k] if k % 3 == 0 else ignored[k]
      update = oracle.update({"w": g}, {"w": curvature})["w"]
    results.append(update)
  np.testing.assert_array_equal(*results)
  own, _, _ = run(gradients, curvature_update_period=3)
  assert not np.allclose(own[-1]["w"], update)
