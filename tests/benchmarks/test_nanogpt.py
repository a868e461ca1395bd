"""The yardstick's settings are nanoGPT's, and its table says what the runs say."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mbf_optax
from benchmarks.nanogpt import muon, training
from benchmarks.nanogpt.model import CONTEXT, GPT, WIDTH, loss
from benchmarks.nanogpt.training import batches

nanogpt = importlib.import_module("benchmarks.nanogpt.__main__")


def test_schedule_warms_up_and_falls_to_a_tenth():
  rate = nanogpt.schedule(1e-3)
  found = [float(rate(step)) for step in (0, 50, 100, 1050, 2000, 3000)]
  np.testing.assert_allclose(
    found, [0, 5e-4, 1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-5, atol=1e-9
  )


def test_matrices_decay_and_norms_do_not():
  params = {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}
  assert nanogpt.decayed(params) == {"kernel": True, "scale": False}


def test_network_is_causal_and_starts_at_chance():
  model = GPT(65)
  tokens = jax.random.randint(jax.random.key(1), (2, CONTEXT), 0, 65)
  params = jax.jit(model.init)(jax.random.key(0), tokens)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
    65 * WIDTH + CONTEXT * WIDTH + 4 * (12 * WIDTH**2 + 2 * WIDTH) + WIDTH
  )
  logits = jax.jit(model.apply)(params, tokens)
  assert abs(float(loss(logits, jnp.roll(tokens, -1, 1))) - np.log(65)) < 0.1
  changed = jax.jit(model.apply)(params, tokens.at[:, 40].add(-1))
  np.testing.assert_array_equal(logits[:, :40], changed[:, :40])
  assert not np.array_equal(logits[:, 40:], changed[:, 40:])


@pytest.mark.parametrize(
  ("losses", "expected"), [([2.0, 1.9, 1.88, 1.7], (300, 3.0)), ([2.0, 1.9], None)]
)
def test_the_first_step_at_the_goal(losses, expected):
  record = {"validation": losses, "seconds": [1.0, 2.0, 3.0, 4.0]}
  assert nanogpt.reached(record, 1.88) == expected
  row = nanogpt.table({"adamw": record}).splitlines()[-1]
  assert ("not reached" in row) == (expected is None)


def test_batches_are_stretches_of_the_text():
  drawn = np.asarray(batches(np.arange(500), 12, 3, seed=0))
  assert drawn.shape == (3, 12, CONTEXT + 1)
  np.testing.assert_array_equal(np.diff(drawn, axis=-1), 1)


def test_a_text_that_is_not_there_is_named(tmp_path):
  for folder in (None, tmp_path):
    with pytest.raises(SystemExit, match=r"--data-dir .* tinyshakespeare"):
      training.texts(folder)


def test_the_page_is_made_of_the_kept_runs():
  page = (nanogpt.RESULTS / "nanogpt.md").read_text()
  assert page == nanogpt.report(nanogpt.RESULTS)
  assert "| adamw |" in page
  assert "| mbf_adam |" in page


def test_the_page_of_two_layers_is_made_of_the_kept_runs():
  page = (muon.RESULTS / "muon.md").read_text()
  assert page == muon.report(muon.RESULTS)
  runs = json.loads((muon.RESULTS / "muon.json").read_text())["runs"]
  for method, settings in muon.TRIED.items():
    best = muon.best(runs, method)
    losses = [muon.last(runs[f"{method}, {setting}"]["0"]) for setting in settings]
    assert muon.last(runs[f"{method}, {best}"]["0"]) == min(losses)
    assert page.count(f"| {method}, {best} ") == 2


def test_the_documentation_says_what_the_runs_of_two_layers_say():
  runs = json.loads((muon.RESULTS / "muon.json").read_text())["runs"]
  adam, plain, muons, ours = muon.results(runs).values()
  with_errors = [
    f"{losses.mean():.3f} ± {losses.std(ddof=1) / len(losses) ** 0.5:.3f}"
    for losses in (ours, muons)
  ]
  docs = (muon.RESULTS.parents[2] / "docs/migrating.md").read_text()
  for said in (*with_errors, f"at {plain.mean():.3f} and {adam.mean():.3f}"):
    assert said in docs, said


def test_losses_in_the_time_of_the_fastest_are_read_off_the_curves():
  falling = {"validation": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
  runs = {"fast": {"0": falling, "1": falling}, "slow": {"1": falling, "2": falling}}
  found = muon.in_time(runs, {"fast": 0.01, "slow": 0.02})
  np.testing.assert_allclose(found["fast"], [1.0])
  np.testing.assert_allclose(found["slow"], [4.0, 4.0])  # after half of 600 steps


@pytest.mark.promotes
def test_steps_are_timed_in_turn(monkeypatch):
  monkeypatch.setattr(training, "EVERY", 2)
  monkeypatch.setattr(training, "VALIDATION", 1)
  text = np.arange(200, dtype=np.int32) % 7
  builds = {"adam": lambda: optax.adam(1e-3), "mbf_adam": muon.DROP_INS["mbf_adam"]}
  setting = training.Setting(layers=1, batch=2, steps=4)
  found = training.seconds_a_step(builds, setting, (text, text), rounds=2)
  assert list(found) == ["adam", "mbf_adam"]
  assert min(found.values()) > 0
  record = training.train(builds["adam"], setting, (text, text), seed=0)
  assert [len(values) for values in record.values()] == [2, 2, 2]


@pytest.mark.promotes
def test_two_equal_rates_are_mbf_adam_itself_with_a_mask():
  """What the documentation gives as the recipe."""
  model, tokens = GPT(7, layers=1), jnp.zeros((1, 8), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
  best = {"curvature_ema": 0.95, "output_exponent": 0.75}
  two = muon.apart(0.01, 0.01, **best)
  one = mbf_optax.mbf_adam(
    muon.schedule(0.01),
    weight_decay=0.1,
    mask=lambda p: jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", p),
    nesterov=True,
    **best,
  )
  states = [tx.init(params) for tx in (two, one)]
  gradients = jax.tree.map(lambda p: jnp.cos(50 * p), params)
  for _ in range(3):
    gradients = jax.tree.map(lambda g: 2 * g**2 - 1, gradients)
    (theirs, states[0]), (mine, states[1]) = (
      tx.update(gradients, state, params)
      for tx, state in zip((two, one), states, strict=True)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), mine, theirs
    )


@pytest.mark.promotes
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
@pytest.mark.parametrize("build", [muon.apart, muon.muon])
def test_the_matrices_alone_have_a_rate_of_their_own(rate, build):
  """Everything else moves as under NAdam, which is what optax's muon takes."""
  params = {
    "Dense_0": {"kernel": jnp.ones((4, 6))},
    "LayerNorm_0": {"scale": jnp.ones(4)},
  }
  gradients = jax.tree.map(lambda p: 0.5 * p, params)
  tx, adam = build(rate), optax.nadam(muon.schedule(muon.RATE))
  state, expected = tx.init(params), adam.init(params)
  for _ in range(3):
    updates, state = tx.update(gradients, state, params)
    theirs, expected = adam.update(gradients, expected, params)
  found = updates["LayerNorm_0"]["scale"]
  np.testing.assert_allclose(found, theirs["LayerNorm_0"]["scale"], rtol=1e-5)
  assert not np.allclose(
    updates["Dense_0"]["kernel"], theirs["Dense_0"]["kernel"], rtol=1e-2
  )


def test_the_readme_says_what_the_runs_say():
  runs = json.loads((nanogpt.RESULTS / "nanogpt.json").read_text())["runs"]
  last = {name: run["validation"][-1] for name, run in runs.items()}
  steps, seconds = nanogpt.reached(runs["mbf_adam"], 1.88)
  at_goal = {
    name: nanogpt.reached(runs[name], 1.88)[1]
    for name in ("muon, 0.01", "adamw, 0.003")
  }
  readme = (nanogpt.RESULTS.parents[2] / "README.md").read_text()
  muon = min(loss for name, loss in last.items() if name.startswith("muon"))
  for said in (
    f"1.88 after {steps} steps and {seconds:.0f} seconds",
    f"ends at {last['mbf_adam']:.2f}; AdamW ends at {last['adamw']:.2f}",
    f"after 2,000 steps and {runs['adamw']['seconds'][-1]:.0f} seconds",
    f"at {last['mbf_adam, 0.003']:.2f} and {last['adamw, 0.003']:.2f}, muon",
    f"rates of its own, at {muon:.2f} ",
    f"at 1.88 after {at_goal['muon, 0.01']:.0f} seconds, AdamW at that rate after"
    f" {at_goal['adamw, 0.003']:.0f};",
  ):
    assert said in readme, said
