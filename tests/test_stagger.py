"""Layers that take turns to refresh their inverses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mbf_optax
from mbf_optax import packed, stagger

SHAPES = {
  "conv": {"kernel": (3, 3, 2, 2)},
  "dense_0": {"kernel": (5, 4), "bias": (4,)},
  "dense_1": {"kernel": (39, 3), "bias": (3,)},
  "dense_2": {"kernel": (38, 3), "bias": (3,)},  # padded to the order of dense_1
}
PARAMS = {
  m: {k: jnp.zeros(s) for k, s in shapes.items()} for m, shapes in SHAPES.items()
}
KERNELS = [f"{module}/kernel" for module in SHAPES]
T1, T2, DAMPING = 2, 6, 0.1


def gradients(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), PARAMS)


def states(**options):
  """The first state, and those after each of 18 updates."""
  tx = mbf_optax.scale_by_mbf(
    DAMPING, curvature_update_period=T1, inverse_update_period=T2, **options
  )
  update, state = jax.jit(tx.update), tx.init(PARAMS)
  yield state
  for step in range(18):
    _, state = update(gradients(step), state)
    yield state


def refreshes(found):
  """Updates at which each layer has a new inverse."""
  steps = {kernel: [] for kernel in KERNELS}
  for step, (before, after) in enumerate(itertools.pairwise(found)):
    for kernel in KERNELS:
      old, new = (np.asarray(s.curvature[kernel].inverse) for s in (before, after))
      if (old != new).any():
        steps[kernel].append(step)
  return steps


@pytest.mark.parametrize("staggered", [False, True])
def test_every_layer_has_its_turn_in_every_period(staggered):
  steps = refreshes(states(staggered=staggered))
  together = {"conv/kernel": 0, "dense_0/kernel": 0, "dense_1/kernel": 0}
  apart = {"conv/kernel": 2, "dense_0/kernel": 4, "dense_1/kernel": 0}
  phases = apart if staggered else together
  phases["dense_2/kernel"] = phases["dense_1/kernel"]  # the same order
  for kernel, phase in phases.items():
    turns = [phase + period * T2 for period in range(3)]
    assert steps[kernel] == sorted({0, *turns}), kernel


def test_inverses_are_those_of_the_statistics_of_their_turn():
  for step, state in enumerate(states(staggered=True), start=-1):
    for kernel, turn in {"conv/kernel": 2, "dense_0/kernel": 4}.items():
      if step % T2 == turn:
        layer = [np.asarray(packed.unpack(x)) for x in state.curvature[kernel]]
        statistics, found = (np.moveaxis(x, (0, 1), (-2, -1)) for x in layer)
        damped = statistics / float(state.weight) + DAMPING * np.eye(found.shape[-1])
        np.testing.assert_allclose(found, np.linalg.inv(damped), rtol=1e-3, atol=1e-3)


def conditionals(depth):
  params = {
    f"layer_{i}": {"kernel": jnp.ones((5 + 8 * (i % 2), 4))} for i in range(depth)
  }
  tx = mbf_optax.mbf_adam(0.1, staggered=True)
  text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
  return text.count("stablehlo.case")


def test_programs_grow_with_the_distinct_orders_alone():
  assert conditionals(2) == 3  # statistics, and inverses of two orders
  assert conditionals(6) == conditionals(12)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 120))
def test_turns_are_on_statistics_and_as_many_as_there_can_be(
  count, statistics, inverse
):
  found = stagger.phases(count, jnp.int32(statistics), jnp.int32(inverse))
  found = [int(phase) for phase in found]
  assert all(phase % statistics == 0 and phase < inverse for phase in found)
  assert len(set(found)) == min(count, max(inverse // statistics, 1))


@pytest.mark.parametrize("factory", [mbf_optax.mbf, mbf_optax.mbf_adam])
def test_layers_of_one_size_are_refreshed_together_as_ever(factory):
  params = {f"layer_{i}": {"kernel": jnp.ones((5, 4))} for i in range(2)}
  results = []
  for staggered in (False, True):
    tx = factory(0.1, inverse_update_period=3, staggered=staggered)
    state = tx.init(params)
    for scale in range(5):
      gradient = jax.tree.map(lambda p, scale=scale: p * scale, params)
      updates, state = tx.update(gradient, state)
    results.append(updates)
  jax.tree.map(np.testing.assert_array_equal, *results)
