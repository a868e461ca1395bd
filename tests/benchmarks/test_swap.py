"""Problems run, results are kept and resumed, tables follow from them alone."""

import argparse
import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.swap import __main__ as command
from benchmarks.swap import (
  data,
  report,
  results,
  runs,
  science,
  statistics,
  tabular,
  training,
)
from benchmarks.swap import optimizers as swapped
from benchmarks.swap.optimizers import OPTIMIZERS, Optimizer
from benchmarks.swap.problem import Problem
from benchmarks.swap.problems import HELD_OUT, PROBLEMS, TUNING

pytestmark = pytest.mark.promotes

QUICK = {"xla_backend_optimization_level": 0}  # a third of the time to compile


def quadratic(steps=40):
  """A problem whose training by gradient descent is known in closed form."""
  return Problem(
    "quadratic",
    0.1,
    "for the test",
    steps,
    init=lambda key: {"x": jnp.ones(2)},
    loss=lambda params, batch, key: jnp.sum(params["x"] ** 2) / 2,
    batch=lambda step, key: (),
    held_out=lambda params: jnp.sum(params["x"] ** 2),
  )


SGD = Optimizer(lambda rate, partition: optax.sgd(rate), {}, "a test's")


@pytest.mark.parametrize("name", PROBLEMS)
def test_first_step(name):
  problem = PROBLEMS[name](None)
  key = jax.random.key(0)

  def first(key):
    params = problem.init(key)
    batch = problem.batch(jnp.int32(0), key)
    loss, gradient = jax.value_and_grad(problem.loss)(params, batch, key)
    moved = jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)
    return loss, optax.tree.norm(gradient), problem.held_out(moved)

  first = jax.jit(first, compiler_options=QUICK)
  loss, norm, held_out = first(key)
  assert np.isfinite([loss, norm, held_out]).all()
  assert norm > 0
  assert held_out >= 0
  assert problem.steps % training.POINTS == 0
  assert problem.steps // training.POINTS >= training.FIRST


def test_sets():
  assert not set(TUNING) & set(HELD_OUT)
  assert set(TUNING) | set(HELD_OUT) == set(PROBLEMS)
  assert len(PROBLEMS) >= 16


def test_batches_depend_on_the_step_and_the_key_alone():
  batch = tabular.noisy().batch
  one, again = (batch(jnp.int32(3), jax.random.key(1))[0] for _ in range(2))
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, batch(jnp.int32(4), jax.random.key(1))[0])
  assert not np.array_equal(one, batch(jnp.int32(3), jax.random.key(2))[0])


@pytest.mark.parametrize("scanned", [True, False])
def test_training_follows_closed_form(scanned):
  problem = dataclasses.replace(quadratic(), scanned=scanned)
  train = training.trainer(problem, optax.sgd(0.1))
  run = training.in_turn({"sgd": train(0)})["sgd"]
  shrunk = 0.9 ** (2 * np.arange(41))  # squares after every step; 2 of them
  np.testing.assert_allclose(run.held_out, 2 * shrunk[::4], rtol=1e-5)
  np.testing.assert_allclose(run.first, shrunk[:20].mean(), rtol=1e-5)
  np.testing.assert_allclose(run.train, shrunk[:40].reshape(10, 4).mean(1), rtol=1e-5)
  assert run.seconds > 0


def test_length_that_does_not_divide():
  with pytest.raises(ValueError, match="35 steps, which is no multiple of 10"):
    training.trainer(quadratic(35), optax.sgd(0.1))


def test_resume(tmp_path):
  task = "quadratic", quadratic()

  def trained(seeds, problem=task, optimizer=SGD, resume=True):
    return runs.train(problem, {"adam": optimizer}, seeds, tmp_path, resume)["adam"]

  assert trained([0, 1]) == [0, 1]
  kept = (tmp_path / "quadratic/adam-1.json").read_text()
  assert trained([0, 1, 2]) == [2]
  (tmp_path / "quadratic/adam-0.json").unlink()
  assert trained([0, 1, 2]) == [0]
  assert (tmp_path / "quadratic/adam-1.json").read_text() == kept
  assert trained([1], resume=False) == [1]
  other = SGD._replace(settings={"momentum": 0.9})
  assert trained([1], optimizer=other) == [1]
  newer = "quadratic", quadratic(60)
  assert trained([1], newer, other) == [1]


def test_trainings_take_turns():
  order = []

  def training_of(name, tenths):
    for tenth in range(tenths):
      order.append((name, tenth))
      yield
    return name.upper()

  lengths = {"a": 2, "b": 3}
  going = {name: training_of(name, tenths) for name, tenths in lengths.items()}
  assert training.in_turn(going) == {"a": "A", "b": "B"}
  assert [tenth for _, tenth in order] == [0, 0, 1, 1, 2]


def test_command_writes_all(tmp_path, monkeypatch, capsys):
  short = {name: lambda folder: quadratic() for name in ("vae", "flow")}
  monkeypatch.setattr(command, "PROBLEMS", short)
  out = ["--out", str(tmp_path)]
  names = ["--problems", "vae", "flow", "--optimizers", "adam", "mbf_adam"]
  changed = 'near={"b1": 0.8}'
  command.main([*names, "--seeds", "2", "--variant", changed, *out])
  printed = capsys.readouterr().out
  assert "near" in printed
  record = json.loads((tmp_path / "vae/near-1.json").read_text())
  assert record["settings"] == {"b1": 0.8}
  assert record["environment"]["versions"]["jax"] == jax.__version__
  (tmp_path / "swap.md").unlink()
  (tmp_path / "swap.png").unlink()
  command.main(["report", *out])
  assert (tmp_path / "swap.md").read_text() in printed
  assert (tmp_path / "swap.png").exists()


def begun(folder, name="quadratic"):
  """Losses of the first steps by optimizer and seed."""
  records = statistics.grouped(results.first_steps(folder))[name]
  return {
    key: [of_key[seed]["first"] for seed in sorted(of_key)]
    for key, of_key in records.items()
  }


def test_first_steps_are_those_of_whole_trainings(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(command, "PROBLEMS", {"quadratic": lambda folder: quadratic()})
  options = ["--problems", "quadratic", "--optimizers", "adam", "mbf_adam"]
  options += ["--seeds", "2", "--out", str(tmp_path)]
  command.main(options)
  command.main(["first", *options])
  found = begun(tmp_path)
  for name, losses in found.items():
    whole = [tmp_path / f"quadratic/{name}-{seed}.json" for seed in range(2)]
    expected = [json.loads(file.read_text())["first"] for file in whole]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
  share = np.mean(found["mbf_adam"]) / np.mean(found["adam"])
  title, printed = "first 20 steps over Adam's, more", capsys.readouterr().out
  assert f"{share:.3f} ±" in printed.split(title)[1]
  alone = tmp_path / "alone"
  command.main(["first", *options[:-1], str(alone)])
  assert begun(alone) == found


def test_first_steps_are_kept(tmp_path):
  def tried(seeds, optimizer=SGD, resume=True):
    task = "quadratic", quadratic()
    return runs.begin(task, {"adam": optimizer}, range(seeds), tmp_path, resume)

  assert tried(2) == ["adam"]
  kept = begun(tmp_path)["adam"]
  assert tried(2) == tried(1) == []
  assert tried(3) == ["adam"]
  assert begun(tmp_path)["adam"][:2] == kept
  assert tried(2, resume=False) == ["adam"]
  assert begun(tmp_path)["adam"] == kept
  faster = Optimizer(lambda rate, partition: optax.sgd(0.3), {"rate": 0.3}, "a test's")
  assert tried(2, faster) == ["adam"]
  assert begun(tmp_path)["adam"] != kept


@pytest.mark.parametrize("name", ["adam", "mbf_adam"])
def test_first_steps_of_one_optimizer_are_kept_and_not_reported(tmp_path, name):
  runs.begin(("quadratic", quadratic()), {name: SGD}, range(2), tmp_path)
  with pytest.raises(SystemExit, match="adam and of another optimizer"):
    report.write(tmp_path)
  assert list(begun(tmp_path)) == [name]


def test_diverged_trainings_are_named(tmp_path):
  """And neither end the others nor the report."""
  task = "quadratic", quadratic()
  far = Optimizer(lambda rate, partition: optax.sgd(1e30), {}, "a test's")
  both = {"adam": SGD, "mbf_adam": far}
  assert runs.train(task, both, [0, 1], tmp_path) == {
    "adam": [0, 1],
    "mbf_adam": [0, 1],
  }
  assert runs.begin(task, both, range(2), tmp_path) == ["adam", "mbf_adam"]
  assert runs.train(task, both, [0, 1, 2], tmp_path) == {"adam": [2], "mbf_adam": [2]}
  text = report.write(tmp_path)
  assert sum("diverged" in line for line in text.splitlines()) >= 4
  np.testing.assert_allclose(begun(tmp_path)["adam"], begun(tmp_path)["adam"][0])


def test_nothing_to_report(tmp_path):
  with pytest.raises(SystemExit, match=r"adam.*run python -m benchmarks.swap, or"):
    report.write(tmp_path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("fast", "is no JSON|no JSON"),
    ("fast=[1]", "a name and a JSON object"),
    ("={}", "a name and a JSON object"),
    ("adam={}", "adam is taken"),
  ],
)
def test_bad_variant(text, message):
  with pytest.raises(argparse.ArgumentTypeError, match=message):
    swapped.variant(text)


def test_variant_reaches_the_partition():
  _, chosen = swapped.variant('all={"b1": 0.5, "partition": {"full_limit": 3}}')
  seen = {}

  def factory(**arguments):
    seen.update(arguments)
    return swapped.mbf_optax.flax_partition()

  chosen.build(0.1, factory)
  assert seen == {"full_limit": 3}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_a_schedule(name):
  tx = OPTIMIZERS[name].build(optax.linear_schedule(0.1, 0.0, 5), None)
  params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
  updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)


def record(held_out, seconds=1.0, first=1.0):
  return {"held_out": held_out, "seconds": seconds, "first": first}


def test_ratio_and_its_error_against_a_simulation():
  rng = np.random.default_rng(0)
  base = 2 + 0.1 * rng.normal(size=(4000, 12))
  own = 0.8 * base + 0.05 * rng.normal(size=base.shape)  # what is shared cancels
  found = [statistics.ratio(a, b) for a, b in zip(own, base, strict=True)]
  values = np.array([ratio.value for ratio in found])
  errors = np.array([ratio.error for ratio in found])
  np.testing.assert_allclose(values.mean(), 0.8, rtol=1e-3)
  np.testing.assert_allclose(np.sqrt((errors**2).mean()), values.std(), rtol=0.05)


def test_quotient_and_its_error_against_a_simulation():
  """Costs as returns have them: negative, and of other seeds for each."""
  rng = np.random.default_rng(0)
  base, own = (-2 + 0.3 * rng.normal(size=(4000, n)) for n in (24, 72))
  means = [map(statistics.mean, pair) for pair in zip(0.8 * own, base, strict=True)]
  found = [statistics.quotient(*pair) for pair in means]
  values = np.array([ratio.value for ratio in found])
  errors = np.array([ratio.error for ratio in found])
  np.testing.assert_allclose(values.mean(), 0.8, rtol=2e-3)
  np.testing.assert_allclose(np.sqrt((errors**2).mean()), values.std(), rtol=0.05)


def test_ratio_of_few():
  assert math.isnan(statistics.ratio([1.0], [2.0]).error)
  assert statistics.ratio([1.0, math.inf], [2.0, 2.0]).value == math.inf


def test_equal_seconds_interpolates():
  adam = {0: record([4.0, 3.0, 2.0], seconds=1.0)}
  own = {0: record([4.0, 2.0, 1.0], seconds=4.0)}  # a quarter: half of the first half
  assert statistics.at_equal_seconds(own, adam).value == pytest.approx(3.0 / 2.0)
  assert statistics.at_equal_steps(own, adam).value == pytest.approx(1.0 / 2.0)
  fast = {0: record([4.0, 2.0, 1.0], seconds=0.5)}
  assert statistics.at_equal_seconds(fast, adam).value == pytest.approx(1.0 / 2.0)


def test_only_common_seeds_count():
  adam = {0: record([1.0]), 1: record([2.0])}
  own = {1: record([1.0]), 2: record([9.0])}
  assert statistics.at_equal_steps(own, adam).value == pytest.approx(0.5)


def test_worst_is_first():
  def group(loss):
    return {"adam": {0: record([1.0])}, "mbf_adam": {0: record([loss])}}

  groups = {"a": group(0.5), "b": group(None), "c": group(0.9)}
  found = report.ratios(groups, statistics.at_equal_steps)
  assert list(found) == ["b", "c", "a"]


def test_geometric_mean():
  ratios = [statistics.Ratio(0.5, 0.05), statistics.Ratio(2.0, 0.2)]
  found = statistics.geometric_mean(ratios)
  assert found.value == pytest.approx(1.0)
  assert found.error == pytest.approx(0.1 / math.sqrt(2))


def test_stand_ins_are_named(tmp_path):
  assert "tinyshakespeare.txt" in data.text(tmp_path)[1]
  graph, note = data.citations(None)
  assert "cora.npz" in note
  assert graph.features.shape == (2708, 512)
  (tmp_path / "tinyshakespeare.txt").write_text("to be or not to be\n" * 9)
  text, note = data.text(tmp_path)
  assert note == ""
  assert text.vocabulary == "\n benort"


def test_exact_solution_solves_the_equation():
  points = np.random.default_rng(0).random((5, 2)).astype(np.float32)

  def exact(point):
    return science._exact(point[None])[0]

  @functools.partial(jax.jit, compiler_options=QUICK)
  @jax.vmap
  def both(point):
    return science._laplacian(exact, point), jnp.trace(jax.hessian(exact)(point))

  found, by_hessian = both(points)
  np.testing.assert_allclose(found, by_hessian, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(
    found, -5 * np.pi**2 * science._exact(points), rtol=1e-4, atol=1e-3
  )
