"""Runs one after another are the runs side by side."""

import numpy as np
import pytest

import mbf_optax
from benchmarks.paper import apart, problems, tasks
from benchmarks.paper.methods import Optimizer
from benchmarks.paper.training import train
from examples.data import Data

MBF = Optimizer(
  mbf_optax.mbf,
  [{"learning_rate": rate, "damping": 1e-2} for rate in (1e-3, 1e-4)],
)

pytestmark = pytest.mark.promotes


def convnet():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(24, 8, 8, 1)).astype(np.float32)
  y = np.arange(24) % 3
  model = problems.Convnet((2, 3), 3, 4, 3)
  return tasks.classification("tiny", model, Data(x, y, x[:9], y[:9]), 8, 4)


def test_one_after_another_ends_where_side_by_side_does(monkeypatch):
  monkeypatch.setattr(apart, "is_faster", lambda: True)
  in_turn = train(convnet(), MBF, seeds=(3, 4, 5), points=2)
  monkeypatch.setattr(apart, "is_faster", lambda: False)
  together = train(convnet(), MBF, seeds=(3, 4, 5), points=2)
  assert in_turn.losses.shape == (2, 3, 4)
  np.testing.assert_allclose(in_turn.losses, together.losses, rtol=1e-4)
  assert len(np.unique(in_turn.losses[..., -1])) == 6
  assert set(in_turn.metrics) == set(together.metrics)
  for name, values in in_turn.metrics.items():
    np.testing.assert_allclose(values, together.metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_runs_take_turns_on_a_cpu_alone(monkeypatch, backend):
  monkeypatch.setattr(apart.jax, "default_backend", lambda: backend)
  assert apart.is_faster() == (backend == "cpu")
