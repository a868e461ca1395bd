"""The low-rank estimator beside ``full``, and where gradients are alike."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax

NEURONS, INPUTS, RANK, BETA, DAMPING = 8, 10_000, 16, 0.9, 0.1
FEW_INPUTS, FEW_NEURONS, LOW, DECAY, LEVEL, LAST = 4, 2, 3, 0.7, 0.1, 9
PARTITION = mbf_optax.flax_partition("low_rank", rank=RANK)


def gradients(noise, count):
  rng = np.random.default_rng(0)
  common = rng.normal(size=(INPUTS, NEURONS))
  for _ in range(count):
    yield np.float32(common + noise * rng.normal(size=common.shape))


def expected(history, damping):
  """Woodbury's identity in float64, at relative damping, of the last gradient."""
  weights = BETA ** np.arange(len(history))[::-1]
  columns = np.float64(history) * np.sqrt(weights / weights.sum())[:, None, None]
  gram = np.einsum("rij,sij->jrs", columns, columns)
  level = damping * np.trace(gram, axis1=1, axis2=2).mean() / INPUTS
  inner = np.einsum("rij,ij->jr", columns, np.float64(history[-1]))
  solved = np.linalg.solve(gram + level * np.eye(len(history)), inner[..., None])
  return (history[-1] - np.einsum("rij,jr->ij", columns, solved[..., 0])) / level


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 1.0])
def test_directions_are_those_of_float64(noise):
  """And downhill. The momentum is 0: a gradient that the history has in it."""
  tx = mbf_optax.scale_by_mbf(
    DAMPING, relative_damping=True, momentum=0.0, partition=PARTITION
  )
  update, history = jax.jit(tx.update), []
  state = tx.init({"kernel": jnp.zeros((INPUTS, NEURONS))})
  for gradient in gradients(noise, RANK):
    direction, state = update({"kernel": jnp.asarray(gradient)}, state)
    direction = np.float64(direction["kernel"])
    assert (np.sum(direction * gradient, axis=0) > 0).all()
    history.append(gradient)
    exact = expected(np.stack(history), DAMPING)
    error = np.linalg.norm(direction - exact, axis=0)
    # The difference of two vectors as long as the gradient over the damping.
    scale = np.linalg.norm(gradient, axis=0) / (DAMPING * np.mean(gradient**2))
    assert (error < 1e-4 * scale).all()


@pytest.mark.parametrize("length", [1.0, 100.0, 1e4, 1e6])
def test_no_damping_is_too_small_for_equal_gradients(length):
  """A damping below what rounding tells from none is raised to that."""
  tx = mbf_optax.scale_by_mbf(
    3e-3, momentum=0.0, partition=mbf_optax.flax_partition("low_rank", rank=4)
  )
  gradient = jax.random.normal(jax.random.key(0), (50, 3))
  gradient = {"kernel": length * gradient / jnp.linalg.norm(gradient, axis=0)[None]}
  state = tx.init(gradient)
  for _ in range(6):
    direction, state = tx.update(gradient, state)
    along = jnp.sum(direction["kernel"] * gradient["kernel"], axis=0) / length
    np.testing.assert_allclose(along, length / (length**2 + 3e-3), rtol=0.35)


# Low rank against full.


@functools.cache
def pair():
  """The same layer with both estimators, in one compiled step."""
  partition = mbf_optax.flax_partition(
    dense="full", rank=LOW, overrides=[("low", "low_rank")]
  )

  def transformation(period):
    return mbf_optax.scale_by_mbf(
      damping=LEVEL,
      momentum=0.0,
      curvature_ema=DECAY,
      curvature_update_period=period,
      inverse_update_period=period,
      partition=partition,
    )

  @jax.jit
  def step(gradient, state, period):
    gradients = {"full": {"kernel": gradient}, "low": {"kernel": gradient}}
    return transformation(period).update(gradients, state)

  zeros = jnp.zeros((FEW_INPUTS, FEW_NEURONS))
  init = transformation(1).init
  return init({"full": {"kernel": zeros}, "low": {"kernel": zeros}}), step


def implied_matrices(state, step):
  """``P^(-1) - lambda I`` of each neuron; ``P`` by its action, statistics at rest."""
  columns = []
  for unit in np.eye(FEW_INPUTS):
    vector = jnp.broadcast_to(jnp.asarray(unit)[:, None], (FEW_INPUTS, FEW_NEURONS))
    updates, _ = step(vector, state, 10**6)
    columns.append({name: np.asarray(updates[name]["kernel"]) for name in updates})
  return {
    name: [
      np.linalg.inv(np.stack([column[name][:, j] for column in columns], axis=1))
      - LEVEL * np.eye(FEW_INPUTS)
      for j in range(FEW_NEURONS)
    ]
    for name in ("full", "low")
  }


def test_low_rank_is_full_up_to_the_tail():
  """Exactly until the history is full; then within the weight of what was dropped.

  The normalised weights of the dropped gradients sum to ``tail``, which low rank hands
  out to those it keeps. The difference of the matrices is one positive semidefinite
  matrix minus another, each a combination of outer products with weights that sum to
  ``tail``: no eigenvalue exceeds ``tail`` times the largest squared norm.
  """
  with jax.enable_x64(True):
    state, step = pair()
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(LAST, FEW_INPUTS, FEW_NEURONS))
    distances = []
    for count, gradient in enumerate(gradients, start=1):
      updates, state = step(jnp.asarray(gradient), state, 1)
      matrices = implied_matrices(state, step)
      largest = np.max(np.sum(gradients[:count] ** 2, axis=1), axis=0)
      tail = max(0, (DECAY**LOW - DECAY**count) / (1 - DECAY**count))
      for j in range(FEW_NEURONS):
        difference = matrices["full"][j] - matrices["low"][j]
        distance = np.linalg.norm(difference, 2)
        assert distance <= tail * largest[j] + 1e-10
        distances.append(distance)
      if count <= LOW:
        chex.assert_trees_all_close(updates["full"], updates["low"], rtol=1e-10)
    assert distances[-1] > 1e-3  # the bound is not met by equality
