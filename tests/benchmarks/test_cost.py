"""Timed steps are of the kinds that they are counted as."""

import functools
import itertools
import json
import pathlib
import re
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import mbf_optax
from benchmarks.cost import __main__ as step_costs
from benchmarks.cost import compilation, device, growth, python_sources
from benchmarks.cost.loops import Loop, compile_all
from benchmarks.cost.measure import Cost, _at_count, _shares
from benchmarks.cost.optimizers import Timed
from benchmarks.cost.report import Record
from mbf_optax._tree.paths import flatten

PERIODS = {"curvature_update_period": 3, "inverse_update_period": 6}
PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.arange(5.0)}}


def matrices(state):
  """Statistics and inverses of the layer's inputs, in any state."""
  (ours,) = (node for node in state if hasattr(node, "curvature"))
  layer = ours.curvature["Dense_0/kernel"]
  layer = getattr(layer, "inputs", layer)
  return layer.statistics, layer.inverse


@pytest.mark.promotes
def test_stages_of_a_compilation_are_timed_apart():
  params = jax.eval_shape(lambda: PARAMS)
  found = {
    name: compilation.twice(make(), params)
    for name, make in compilation.OPTIMIZERS.items()
  }
  for cost in itertools.chain(*found.values()):
    assert min(cost) > 0
    assert cost.total == pytest.approx(sum(cost[:3]))
  assert found["mbf_adam"][0].operations > found["adam"][0].operations
  rows = compilation.table("small", found).splitlines()
  assert [row.split()[0] for row in rows] == ["small", "adam", "mbf", "mbf_adam"]
  assert rows[1].split()[5] == "1.0"


@pytest.mark.promotes
def test_a_stored_program_is_not_compiled_again(tmp_path):
  options = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
  before = {name: getattr(jax.config, name) for name in options}
  hits = []

  def listen(event, **_):
    hits.append(event == "/jax/compilation_cache/cache_hits")

  jax.monitoring.register_event_listener(listen)
  try:
    compilation.stored(str(tmp_path))
    compilation_cache.reset_cache()
    params = jax.eval_shape(lambda: PARAMS)
    compilation.twice(compilation.OPTIMIZERS["mbf_adam"](), params)
    assert sum(hits) == 1
  finally:
    jax.monitoring.unregister_event_listener(listen)
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.promotes
@pytest.mark.parametrize(
  ("network", "layers"), [("transformer", 12), ("resnet110", 108)]
)
def test_networks_to_compile_for_are_deep(network, layers):
  names = {path.split("/")[0] for path in flatten(compilation.parameters(network))}
  blocks = [name for name in names if "Block" in name]
  assert len(blocks) * (1 if network == "transformer" else 2) == layers


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["mbf", "mbf_adam"])
def test_every_kind_of_step_does_what_it_is_timed_for(name):
  timed = Timed(getattr(mbf_optax, name)(0.1, **PERIODS), 3, 6)
  update = jax.jit(timed.tx.update)
  state = timed.tx.init(PARAMS)
  for scale in (1.0, 0.3, -2.0):
    _, state = update(jax.tree.map(lambda p, s=scale: s * p, PARAMS), state)
  shares = _shares(timed)
  assert sum(shares.values()) == pytest.approx(1)
  other = jax.tree.map(jnp.cos, PARAMS)  # a multiple would leave the inverse as it is
  found = {}
  for count, share in shares.items():
    before = _at_count(state, count)
    _, after = update(other, before)
    pairs = zip(matrices(before), matrices(after), strict=True)
    found[tuple(not np.array_equal(*pair) for pair in pairs)] = share
  assert found == pytest.approx(
    {(True, True): 1 / 6, (True, False): 1 / 6, (False, False): 2 / 3}
  )


def test_an_update_moves_what_it_changes_twice_and_its_inverses_once():
  """Of a 3x3 kernel: 9 floats a block, and triangles of 45."""
  blocks = 4 * 4
  for tx, moments in (
    (mbf_optax.scale_by_mbf(), 1),
    (mbf_optax.scale_by_mbf_adam(), 2),
  ):
    start = functools.partial(device._after_a_refresh, tx, (3, 3, 4, 4))
    floats = 2 * (9 + 9 * moments + 45) * blocks + 45 * blocks
    assert device._bytes_moved(start) == pytest.approx(4 * floats, rel=0.01)


@pytest.mark.promotes
def test_an_update_that_is_timed_refreshes_nothing():
  loops = device.update_loops(device.SIZES["small"])
  for name in ("mbf", "mbf_adam"):
    loop = loops[f"update of {name}"]
    loop.compile(loop.lower())
    gradients, state, nothing = loop.start()
    changed = jax.tree.map(lambda g: g + 1, gradients)
    _, after, updates = jax.jit(loop.function)((changed, state, nothing))
    assert jnp.abs(updates["kernel"]).min() > 0  # not left out of the program
    old, new = (
      jax.tree_util.tree_leaves_with_path(s.curvature) for s in (state, after)
    )
    assert {path[-1].name for path, _ in new} == {"statistics", "inverse"}
    for (path, before), (_, now) in zip(old, new, strict=True):
      assert np.array_equal(now, before) == (path[-1].name == "inverse")


def test_what_does_not_compile_in_time_is_left_out_and_named():
  loop = Loop(lambda: jnp.zeros(3), lambda x: x + 1, period=4)
  late = {"late": "not compiled in time"}
  assert compile_all({"late": loop}, seconds=-1.0) == ({}, late)
  size = device.SIZES["small"]._replace(problems={})
  text = device.tables(size, {"inverse 4 x 65": 2e-3}, late)
  assert "late: not compiled in time" in text
  (row,) = (line for line in text.splitlines() if line.startswith("| 4 x 65"))
  assert [cell.strip() for cell in row.split("|")][2:5] == ["2.000", "", ""]
  wrong = Loop(lambda: jnp.zeros(3), lambda x: x + 1)
  wrong.compile = lambda lowered: 1 / 0
  compiled, failed = compile_all({"early": loop, "wrong": wrong}, seconds=60.0)
  assert compiled.keys() == {"early"}
  assert failed == {"wrong": "ZeroDivisionError: division by zero"}
  assert loop.seconds(rounds=2, calls=4) > 0
  times = {"inverse 4 x 65": 3e-3, "cholesky 4 x 65": 2e-3}
  assert "| 1.50 " in device.tables(size, times, {})


def test_a_function_is_applied_as_often_as_it_is_counted():
  loop = Loop(lambda: jnp.zeros(2), lambda x: x + 1, repeats=10)
  loop.compile(loop.lower())
  np.testing.assert_array_equal(loop.compiled(loop.start()), [10, 10])


def test_held_out_sources_are_files_of_their_own():
  train, held_out = python_sources.sources(10**9)
  content = train.tobytes(), held_out.tobytes()
  path = pathlib.Path(sysconfig.get_path("stdlib")) / "json" / "decoder.py"
  assert sum(path.read_bytes() in part for part in content) == 1
  assert 0.05 < len(held_out) / len(train) < 0.25


@pytest.mark.promotes
def test_the_device_benchmark_times_trains_and_keeps(monkeypatch, tmp_path, capsys):
  small = device.SIZES["small"]
  problem = {"autoencoder": small.problems["autoencoder, 8"]}
  sizes = {"small": small._replace(problems=problem)}
  monkeypatch.setattr(device, "SIZES", sizes)
  monkeypatch.setattr(device, "CONTENDERS", ("adam", "mbf_adam"))
  name = "train: adam, 0.001"
  adams = {name: python_sources.trainings(small.model)[name]}
  monkeypatch.setattr(python_sources, "trainings", lambda setting: adams)
  device.main(["--size", "small", "--rounds", "1", "--out", str(tmp_path)])
  record = json.loads((tmp_path / "device.json").read_text())
  assert record["left out"] == {}
  assert record["seconds"].keys() == record["compile seconds"].keys() - {name}
  losses = record["trainings"][name]["loss"]
  assert losses[-1] < losses[0] < 1.2 * np.log(256)
  text = (tmp_path / "device.md").read_text()
  assert text in capsys.readouterr().out
  assert "autoencoder: mbf_adam" in text


RESULTS = pathlib.Path(device.__file__).parent / "results"


def test_the_page_of_an_accelerator_follows_from_its_record():
  record = json.loads((RESULTS / "device.json").read_text())
  page = device.tables(device.SIZES["full"], record["seconds"], record["left out"])
  assert (RESULTS / "device.md").read_text() == f"{page}\n"


@pytest.mark.parametrize("problem", ["GPT-2 small", "ResNet32", "MNIST autoencoder"])
def test_the_documentation_says_what_the_record_of_an_accelerator_does(problem):
  kept = json.loads((RESULTS / "device.json").read_text())["seconds"]
  key = problem.removeprefix("MNIST ")
  of_problem = {n.split(": ")[1]: t for n, t in kept.items() if n.startswith(key)}
  adam = of_problem["adam"]
  names = ("mbf_adam", "mbf_adam(1,1)", "mbf", "muon")
  cells = [1e3 * adam, *(of_problem[name] / adam for name in names)]
  page = (RESULTS.parents[2] / "docs" / "accelerators.md").read_text()
  (line,) = [row for row in page.splitlines() if row.startswith(f"| {problem}")]
  said = line.split(" | ", 1)[1]
  assert said == " | ".join(f"{cell:.2f}" for cell in cells) + " |"


def test_costs_of_one_problem_replace_those_alone(tmp_path):
  record = Record(tmp_path / "cost.json")
  adam, mbf = Cost(0.01, 0.01, 2.0, 8, 1), Cost(0.015, 0.03, 5.0, 20, 1)
  record.keep("autoencoder", {"adam": adam, "mbf": adam})
  record.keep("resnet32", {"adam": adam, "mbf": adam})
  record.keep("autoencoder", {"adam": adam, "mbf": mbf})
  again = Record(record.path)
  assert again.costs()["autoencoder"] == {"adam": adam, "mbf": mbf}
  assert again.costs()["resnet32"]["mbf"] == adam
  text = step_costs.page(again)
  assert text.count(f"jax {jax.__version__}") == 1  # both were made alike
  (row,) = (
    line for line in text.splitlines() if line.startswith("| mbf ") and "3.00" in line
  )
  assert [cell.strip() for cell in row.split("|")][2:5] == ["1.50", "3.00", "2.5"]


def test_growth_has_a_table_for_each_axis_by_size(tmp_path):
  record, adam = Record(tmp_path / "growth.json"), Cost(0.01, 0.01, 2.0, 8, 1)
  for name, seconds in (("width 512", 0.02), ("batch 16", 0.03), ("width 256", 0.01)):
    record.keep(name, {"adam": adam, "mbf": adam._replace(mean=seconds)})
  assert list(growth.by_axis(record)["width"]) == [256, 512]
  lines = growth.page(record).splitlines()
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  assert ["512", "10.0", "2.00"] in rows
  assert ["16", "10.0", "3.00"] in rows


@pytest.mark.parametrize(("name", "made"), [("cost", step_costs), ("growth", growth)])
def test_kept_pages_are_those_of_their_records(name, made):
  page = made.page(Record(RESULTS / f"{name}.json"))
  assert (RESULTS / f"{name}.md").read_text() == page


def test_the_readme_says_what_the_race_says():
  root = pathlib.Path(step_costs.__file__).parents[2]
  readme = (root / "README.md").read_text()
  kept = root / "benchmarks" / "cost" / "results" / "autoencoder_race.json"
  race = json.loads(kept.read_text())
  last = {name: curve["train_loss"][-1] for name, curve in race["curves"].items()}
  assert f"training loss of {last['Adam']:.1f}, `mbf_adam` at that same" in readme
  assert f"rate at {last['mbf_adam']:.1f} " in readme
  adam = race["seconds_per_step"]["Adam"]
  for name, seconds in race["seconds_per_step"].items():
    if name not in ("Adam", "mbf"):  # which the table leaves out or calls 1
      row = rf"^\| `?{name}`? \|.*\| {seconds / adam:.2f} \|$"
      assert re.search(row, readme, re.M), name
