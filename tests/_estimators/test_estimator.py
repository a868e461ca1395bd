"""Every estimator of the table, by its protocol alone, against explicit matrices.

What a block is, which matrix belongs to it and what a matrix does to it are written out
in NumPy below; each class of ``mbf_optax/_estimators`` has its own file for the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbf_optax._estimators import estimator as protocol
from mbf_optax._estimators.estimator import INPUTS, OUTPUTS
from mbf_optax._estimators.low_rank import normalized
from mbf_optax._estimators.table import estimator_of
from mbf_optax._linalg import triangles
from mbf_optax._linalg.groups import Results
from mbf_optax._linalg.statistics import unregularized
from mbf_optax._partition.blocks import cut, joined
from mbf_optax._partition.layer import Bias, Layer, read

EMA, SCALE, SHIFT = 0.7, 1.3, 0.2


def reading(shape, layer, bias=None):
  return read("kernel", shape, layer, bias and Bias("bias", bias))


# Vectors are (n, *stack, *counted).
READINGS = {
  "packed": reading((3, 2, 2, 3), Layer((0, 1), joins_bias=False)),
  "packed with bias": reading((4, 3), Layer((0,)), (3,)),
  "packed stack": reading((2, 3, 4), Layer((1,), stack_axes=(0,)), (2, 4)),
  "matrix": reading((65, 2), Layer((0,))),
  "shared": reading((4, 3), Layer((0,), "shared"), (3,)),
  "shared stack": reading((3, 2, 4), Layer((0,), "shared", stack_axes=(1,))),
  "shared parts": reading((2, 5, 3), Layer((1,), "shared", (0,), block_limit=3)),
  "shared even parts": reading((6, 3), Layer((0,), "shared", block_limit=3), (3,)),
  "shared odd parts": reading((5, 3), Layer((0,), "shared", block_limit=3), (3,)),
  "shared wide": reading((259, 2), Layer((0,), "shared", block_limit=512), (2,)),
  "shared even stack": reading(
    (2, 4, 3), Layer((1,), "shared", (0,), block_limit=2), (2, 3)
  ),
  "two_sided": reading((4, 3), Layer((0,), "two_sided"), (3,)),
  "two_sided even parts": reading(
    (6, 4), Layer((0,), "two_sided", block_limit=2), (4,)
  ),
  "two_sided odd parts": reading((5, 3), Layer((0,), "two_sided", block_limit=2), (3,)),
  "two_sided even stack": reading(
    (4, 2, 6), Layer((0,), "two_sided", (1,), block_limit=3), (2, 6)
  ),
  "two_sided parts": reading((2, 5, 4), Layer((1,), "two_sided", (0,), block_limit=3)),
  "low_rank": reading((6, 3), Layer((0,), "low_rank", rank=2), (3,)),
  "rms": reading((2, 3), Layer((), "rms")),
  "inverse": reading((3,), Layer((), "inverse")),
}
WITH_MATRICES = [name for name, r in READINGS.items() if not r.layer.elementwise]
each_reading = pytest.mark.parametrize("name", READINGS)
each_with_matrices = pytest.mark.parametrize("name", WITH_MATRICES)


def vectors(name, seed=0):
  """Block vectors of a gradient."""
  r = READINGS[name]
  shape = (1, *r.shape) if r.layer.elementwise else (r.block_size, *r.batch_shape)
  return np.random.default_rng(seed).normal(size=shape)


def f32(array):
  return jnp.asarray(array, jnp.float32)


def pieces(name, seed=0):
  """The vectors as the library has them, a joined bias apart."""
  return cut(READINGS[name], f32(vectors(name, seed)))


def constant(spectrum):
  """A regularizer that needs to know nothing."""
  ones = jnp.ones_like(spectrum.mean_diagonal)
  return SCALE * ones, SHIFT * ones


def after(name, steps=3):
  """The estimator and its state after some gradients."""
  estimator = estimator_of(READINGS[name])
  state = estimator.init(jnp.float32)
  for seed in range(steps):
    state = estimator.accumulate(
      state, estimator.entry(pieces(name, seed)), jnp.float32(EMA)
    )
  return estimator, state


def parts(n, limit, bias=False):
  """Rows of every part: as few parts as fit the limit, all but the last equal.

  A bias, the last of the rows, is in the last part and does not count.
  """
  n -= bias
  count = -(-n // limit)
  size = -(-n // count)
  cuts = [slice(i, min(i + size, n)) for i in range(0, n, size)]
  return [*cuts[:-1], slice(cuts[-1].start, n + bias)]


def columns(r, blocks):
  """``(stacked, n, blocks of one layer)``."""
  n, stacked = len(blocks), int(np.prod(r.stack_shape))
  return np.moveaxis(blocks.reshape(n, stacked, -1), 0, 1)


def averages(name, side, steps=3):
  """Matrices ``{(stack, block or None, first row): G}`` by what they belong to."""
  r = READINGS[name]
  found = {}
  for seed in range(steps):
    given = columns(r, vectors(name, seed))
    given = given.swapaxes(1, 2) if side == OUTPUTS else given
    for s, layer in enumerate(given):
      limit = len(layer) if r.layer.estimator == "full" else r.layer.block_limit
      for rows in parts(len(layer), limit, side == INPUTS and bool(r.bias_path)):
        own = layer[rows]
        each = range(own.shape[1]) if r.layer.estimator == "full" else [None]
        for j in each:
          new = (
            own @ own.T / own.shape[1] if j is None else np.outer(own[:, j], own[:, j])
          )
          key = s, j, rows.start
          found[key] = EMA * found.get(key, 0) + (1 - EMA) * new
  return found


def as_dense(name, values, is_packed):
  """What the library keeps, by the keys of :func:`averages`; padding is left out."""
  r = READINGS[name]
  values = np.asarray(values)
  if is_packed:
    values = np.moveaxis(np.asarray(triangles.unpack(f32(values))), (0, 1), (-2, -1))
  stacked, n = int(np.prod(r.stack_shape)), values.shape[-1]
  return values.reshape(stacked, -1, n, n)


def regularized(name, side):
  """``SCALE G + SHIFT I`` for every key."""
  return {
    key: SCALE * g + SHIFT * np.eye(len(g)) for key, g in averages(name, side).items()
  }


def check_matrices(name, given, expected, is_packed):
  dense = as_dense(name, given, is_packed)
  starts = sorted({start for _, _, start in expected})
  for (s, j, start), matrix in expected.items():
    index, n = starts.index(start) if j is None else j, len(matrix)
    np.testing.assert_allclose(
      dense[s, index, :n, :n], matrix, rtol=1e-5, atol=1e-6, err_msg=str((s, j, start))
    )


@each_reading
def test_inverses_are_identities_before_the_first_gradient(name):
  if name.startswith("low_rank") or READINGS[name].layer.elementwise:
    pytest.skip("keeps no inverse before its first gradient")
  estimator = estimator_of(READINGS[name])
  given = pieces(name)
  state = estimator.init(jnp.float32)
  found = estimator.precondition(state, given, unregularized)
  np.testing.assert_array_equal(joined(found), joined(given))


@pytest.mark.parametrize("name", [n for n in WITH_MATRICES if n != "low_rank"])
def test_statistics_and_regularized_matrices(name):
  estimator, state = after(name)
  for side, system in zip(
    estimator.sides, estimator.matrices(state, constant), strict=True
  ):
    expected = averages(name, side)
    check_matrices(name, system.statistics, expected, system.is_packed)
    np.testing.assert_allclose(system.scale, SCALE)
    np.testing.assert_allclose(system.shift, SHIFT)
    batch = len(system.batch)
    assert system.scale.ndim == system.shift.ndim == np.ndim(system.order) == batch
    largest = max(len(matrix) for matrix in expected.values())
    assert np.max(system.order) == largest


@pytest.mark.parametrize("name", [n for n in WITH_MATRICES if n != "low_rank"])
def test_what_a_regularizer_is_told(name):
  """Mean diagonals without padding, rows, and how many vectors a step adds."""
  estimator, state = after(name)
  told = []

  def listen(spectrum):
    told.append(spectrum)
    return constant(spectrum)

  estimator.matrices(state, listen)
  r = READINGS[name]
  for side, spectrum in zip(estimator.sides, told, strict=True):
    expected = averages(name, side)
    starts = sorted({start for _, _, start in expected})
    means = np.asarray(spectrum.mean_diagonal).reshape(int(np.prod(r.stack_shape)), -1)
    orders = np.broadcast_to(spectrum.order, spectrum.mean_diagonal.shape)
    orders = orders.reshape(means.shape)
    for (s, j, start), g in expected.items():
      index = starts.index(start) if j is None else j
      np.testing.assert_allclose(means[s, index], np.trace(g) / len(g), rtol=1e-5)
      assert orders[s, index] == len(g)
    alone = r.layer.estimator == "full"
    per_layer = r.block_size if side == OUTPUTS else r.blocks_per_layer
    assert spectrum.sharers == (1 if alone else per_layer)
    assert spectrum.stack_axes == tuple(range(len(r.stack_shape)))


def applied(name, powers, given):
  """Every matrix times its rows of its blocks, sides one after the other."""
  r = READINGS[name]
  result = columns(r, given).copy()
  for side, matrices in powers.items():
    result = result.swapaxes(1, 2) if side == OUTPUTS else result
    for (s, j, start), matrix in matrices.items():
      rows = slice(start, start + len(matrix))
      at = (s, rows, slice(None) if j is None else slice(j, j + 1))
      result[at] = matrix @ result[at]
    result = result.swapaxes(1, 2) if side == OUTPUTS else result
  return np.moveaxis(result, 1, 0).reshape(given.shape)


def inverted(system):
  """Results for a layer by NumPy, in the layout of its matrices."""
  dense = np.asarray(system.statistics)
  if system.is_packed:
    dense = np.moveaxis(
      np.asarray(triangles.unpack(system.statistics)), (0, 1), (-2, -1)
    )
  inverses = np.linalg.inv(SCALE * dense + SHIFT * np.eye(dense.shape[-1]))
  if system.is_packed:
    inverses = triangles.pack(f32(np.moveaxis(inverses, (-2, -1), (0, 1))))
  return Results(f32(inverses), jnp.array(True), system.shift)


@pytest.mark.parametrize("name", [n for n in WITH_MATRICES if n != "low_rank"])
def test_directions_are_products_with_the_inverses(name):
  estimator, state = after(name)
  results = [inverted(system) for system in estimator.matrices(state, constant)]
  state = estimator.with_inverses(state, results)
  given = vectors(name, 9)
  inverses = {
    side: {key: np.linalg.inv(m) for key, m in regularized(name, side).items()}
    for side in estimator.sides
  }
  expected = applied(name, inverses, given)
  found = joined(estimator.precondition(state, pieces(name, 9), unregularized))
  largest = np.max(np.abs(expected))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)
  for kept, result in zip(estimator.inverses(state), results, strict=True):
    np.testing.assert_array_equal(kept, result.values)


def lengths(name, given):
  """Of what moves as one: a block, a part of it, or the layer; at every element."""
  r = READINGS[name]
  result = columns(r, given).copy()
  for s, layer in enumerate(result):
    limit = r.layer.block_limit if r.layer.estimator == "shared" else len(layer)
    if r.layer.estimator == "two_sided":
      result[s] = np.linalg.norm(layer)
      continue
    for rows in parts(len(layer), limit, bool(r.bias_path)):
      result[s, rows] = np.linalg.norm(layer[rows], axis=0)
  return np.moveaxis(result, 1, 0).reshape(given.shape)


@each_reading
def test_norms_are_of_what_moves_as_one(name):
  given = vectors(name)
  r = READINGS[name]
  expected = np.abs(given) if r.layer.elementwise else lengths(name, given)
  found = estimator_of(r).norms(pieces(name))
  wanted = cut(r, f32(expected))
  assert len(found) == len(wanted)
  for norms, each in zip(found, wanted, strict=True):
    np.testing.assert_allclose(np.broadcast_to(norms, each.shape), each, rtol=1e-5)


@each_reading
def test_shapes_and_dtypes_are_kept_and_sides_agree(name):
  estimator, state = after(name)
  first = estimator.init(jnp.float32)
  kept = jax.tree.map(
    lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, first
  )
  assert all(jax.tree.leaves(kept))
  count = len(estimator.sides)
  assert len(estimator.matrices(state, constant)) == count
  assert len(estimator.inverses(state)) == count
  assert set(estimator.sides) <= {INPUTS, OUTPUTS}
  completed = estimator.completed(state)
  assert jax.tree.structure(completed) == jax.tree.structure(state)


@each_reading
def test_layouts_have_the_structure_of_the_state(name):
  """And no more axes than each array."""
  estimator, state = after(name, 1)
  mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
  layout = estimator.shardings(state, NamedSharding(mesh, PartitionSpec()))
  pairs = jax.tree.map(lambda place, leaf: (place, leaf), layout, state)
  for place, leaf in jax.tree.leaves(pairs, is_leaf=lambda n: type(n) is tuple):
    assert len(place.spec) <= leaf.ndim


@each_with_matrices
def test_condition_and_spread_are_of_the_batch(name):
  estimator, state = after(name)
  results = [inverted(system) for system in estimator.matrices(state, constant)]
  if name != "low_rank":
    state = estimator.with_inverses(state, results)
    largest = max(
      np.diag(inverse).max() / np.diag(inverse).min()
      for side in estimator.sides
      for inverse in map(np.linalg.inv, regularized(name, side).values())
    )
    np.testing.assert_allclose(np.max(estimator.spread(state)), largest, rtol=1e-3)
  assert np.all(np.asarray(estimator.condition(state, jnp.float32(1))) >= 1)
  assert np.all(np.asarray(estimator.spread(state)) >= 1)


@each_reading
def test_operations_are_counted(name):
  estimator = estimator_of(READINGS[name])
  counted = estimator.operations()
  assert counted.apply > 0
  assert (counted.inverse > 0) == (bool(estimator.sides) and name != "low_rank")


def test_condition_number_is_between_its_bounds():
  """``cond / n <= estimate <= n cond + 1`` for matrices of any spectrum."""
  rng = np.random.default_rng(0)
  for n, damping in ((3, 1e-3), (9, 0.1), (9, 10.0)):
    g = rng.normal(size=(n, 2))
    statistics = g @ g.T
    damped = statistics + damping * np.eye(n)
    exact = np.linalg.cond(damped)
    estimate = protocol.condition_number(
      f32(np.diag(statistics))[:, None], f32(np.diag(np.linalg.inv(damped)))[:, None]
    )
    assert exact / n <= float(estimate[0]) <= n * exact + 1


def test_lengths_and_inner_products_of_vectors_in_pieces():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 4, 3)).astype(np.float32)

  def cut(v):
    return f32(v[:1]), f32(v[1:])

  found = protocol.lengths(cut(a), (0,))
  np.testing.assert_allclose(found, np.linalg.norm(a, axis=0)[None], rtol=1e-5)
  found = protocol.inner(cut(a), cut(b), (0, 1))
  np.testing.assert_allclose(found, np.sum(a * b), rtol=1e-5)
  nothing = protocol.lengths((jnp.zeros((4, 3)),), (0,))
  assert np.all((nothing > 0) & (nothing < 1e-18))


def test_low_rank_weights_are_normalised_when_completed():
  estimator, state = after("low_rank", 1)
  np.testing.assert_allclose(np.sum(state.weights), 1 - EMA, rtol=1e-6)
  np.testing.assert_allclose(np.sum(estimator.completed(state).weights), 1, rtol=1e-6)
  empty = normalized(estimator.init(jnp.float32))
  np.testing.assert_array_equal(empty.weights, 0)
