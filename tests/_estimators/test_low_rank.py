"""The low-rank estimator where successive gradients are alike, and U^T U singular."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbf_optax

NEURONS, INPUTS, RANK, BETA, DAMPING = 8, 10_000, 16, 0.9, 0.1
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
