"""Matrices of many layers as one batch and back, against NumPy layer by layer."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._linalg import groups
from mbf_optax._linalg.groups import Matrices, part_of_matrices
from mbf_optax._linalg.statistics import Statistics

ROWS, COLUMNS = np.triu_indices(3)


def symmetric(*shape, seed=0):
  """Matrices ``(*batch, n, n)`` with the last number of the shape twice."""
  values = np.random.default_rng(seed).normal(size=(*shape, shape[-1]))
  return (values + values.swapaxes(-1, -2)).astype(np.float32)


def whole(*shape, dtype="float32", scale=2.0, shift=0.5, seed=0):
  ones = jnp.ones([1] * len(shape[:-1]))
  values = jnp.asarray(symmetric(*shape, seed=seed), dtype)
  return Matrices(values, False, scale * ones, shift * ones)


def packed(*batch, as_factor=False, scale=2.0, shift=0.5, seed=0):
  """Of order 3."""
  matrices = symmetric(*batch, 3, seed=seed)[..., ROWS, COLUMNS]
  values = jnp.asarray(np.moveaxis(matrices, -1, 0))
  ones = jnp.ones([1] * len(batch))
  return Matrices(values, True, scale * ones, shift * ones, as_factor=as_factor)


SYSTEMS = [
  whole(9),
  packed(2),
  whole(4, 16),  # padded to the same order as 9
  packed(2, as_factor=True),
  whole(5, 17),
  packed(2, 3),
  whole(9, dtype="bfloat16"),
]


def members(found):
  return [[part.members for part in group.parts] for group in found]


def test_layers_of_one_order_layout_and_dtype_are_one_group():
  found = groups.groups_of(SYSTEMS, part_of_matrices)
  assert members(found) == [[(0, 2)], [(1, 5)], [(3,)], [(4,)], [(6,)]]
  assert [group.is_packed for group in found] == [False, True, True, False, False]
  assert [group.as_factor for group in found] == [False, False, True, False, False]


def test_layers_of_several_devices_stay_by_themselves(monkeypatch):
  monkeypatch.setattr(groups.jax, "device_count", lambda: 2)
  found = groups.groups_of(SYSTEMS, part_of_matrices)
  assert members(found) == [[(0,)], [(1,), (5,)], [(2,)], [(3,)], [(4,)], [(6,)]]


def test_whole_matrices_are_joined_scaled_and_shifted():
  layers = [whole(9), whole(2, 2, 11, scale=3.0, shift=-1.0, seed=1)]
  (group,) = groups.groups_of(layers, part_of_matrices)
  (part,) = group.parts
  one, others = symmetric(9), symmetric(2, 2, 11, seed=1).reshape(4, 11, 11)
  expected = np.zeros((5, 11, 11))
  expected[0, :9, :9] = 2 * one
  expected[0] += 0.5 * np.eye(11)
  expected[1:] = 3 * others - np.eye(11)
  np.testing.assert_allclose(part.matrices(group), expected, rtol=1e-6)
  more = jnp.arange(5.0)
  expected += np.arange(5)[:, None, None] * np.eye(11)
  np.testing.assert_allclose(part.matrices(group, more), expected, rtol=1e-6)


def test_packed_matrices_are_joined_scaled_and_shifted():
  layers = [packed(2), packed(2, 2, scale=3.0, shift=-1.0, seed=1)]
  (group,) = groups.groups_of(layers, part_of_matrices)
  (part,) = group.parts
  first, second = symmetric(2, 3), symmetric(2, 2, 3, seed=1).reshape(4, 3, 3)
  expected = np.concatenate([2 * first + 0.5 * np.eye(3), 3 * second - np.eye(3)])
  found = part.matrices(group)
  np.testing.assert_allclose(found, expected[:, ROWS, COLUMNS].T, rtol=1e-6)


@pytest.mark.parametrize("system", [packed(2), whole(2, 9)])
def test_copies_of_a_part_differ_by_their_shifts_alone(system):
  (group,) = groups.groups_of([system], part_of_matrices)
  (part,) = group.parts
  axis = 1 if system.is_packed else 0
  shifts = jnp.array([[0.0, 1.0], [10.0, 20.0], [3.0, 4.0]])
  copies = part.repeated(group, shifts)
  found = np.moveaxis(np.asarray(copies.matrices(group)), axis, 0)
  alone = [np.asarray(part.matrices(group, shift)) for shift in shifts]
  np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_orders_that_hardly_differ_share_a_program():
  """Those of a layer's inputs and outputs differ by its bias."""
  layers = [whole(128), whole(2, 129), whole(100), whole(1024), whole(1025), whole(900)]
  found = groups.groups_of(layers, part_of_matrices)
  assert members(found) == [[(0, 1)], [(2,)], [(3, 4)], [(5,)]]
  assert found[0].parts[0].statistics.shape == (3, 129, 129)


def test_small_orders_share_a_program_more_often():
  """Those of a ResNet's convolutions."""
  layers = [whole(n) for n in (116, 96, 72, 64, 32, 27, 16)]
  found = groups.groups_of(layers, part_of_matrices)
  assert members(found) == [[(0, 1)], [(2, 3)], [(4, 5)], [(6,)]]


def by_mean(spectrum):
  """Numbers that tell who asked: from a mean diagonal, an order and sharers."""
  order, sharers = (jnp.asarray(v, jnp.float32) for v in spectrum[1:3])
  return order / spectrum.mean_diagonal, order + 100 * sharers


@pytest.mark.parametrize("is_packed", [True, False])
def test_statistics_are_regularized_as_one_batch(is_packed):
  """Every matrix by what is known of itself."""
  shapes, sharers = [(2, 3), (1, 2, 3)], [7, 5]
  dense = [np.abs(symmetric(*shape, seed=len(shape))) for shape in shapes]
  layers = [
    Statistics(
      jnp.asarray(np.moveaxis(d[..., ROWS, COLUMNS], -1, 0) if is_packed else d),
      is_packed,
      np.full([1] * (d.ndim - 2), 3),
      known,
      (0,),
    )
    for d, known in zip(dense, sharers, strict=True)
  ]
  part = groups.part_of_statistics((4, 6), layers, by_mean)
  assert part.members == (4, 6)
  means = [np.trace(d, axis1=-2, axis2=-1).reshape(-1) / 3 for d in dense]
  np.testing.assert_allclose(part.scale, 3 / np.concatenate(means), rtol=1e-5)
  np.testing.assert_array_equal(part.shift, [703, 703, 503, 503])
  np.testing.assert_array_equal(part.order, [3, 3, 3, 3])
  alone = groups.part_of_statistics((1,), layers[1:], by_mean)
  np.testing.assert_allclose(alone.scale, 3 / means[1].reshape(1, 2), rtol=1e-5)
  np.testing.assert_array_equal(alone.shift, [[503, 503]])


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 2)), (1, (2, 6))])
def test_a_joint_batch_is_split_as_numpy_does(axis, shape):
  values = np.arange(12.0, dtype=np.float32).reshape(shape)
  found = groups.split(jnp.asarray(values), [1, 3, 2], axis)
  expected = np.split(values, [1, 4], axis)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert groups.ends_of([1, 3, 2]) == [1, 4]
