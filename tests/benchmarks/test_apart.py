"""Runs each on its own are the runs side by side."""

import threading

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


def test_each_on_its_own_ends_where_side_by_side_does(monkeypatch):
  monkeypatch.setattr(apart, "is_faster", lambda: True)
  alone = train(convnet(), MBF, seeds=(3, 4, 5), points=2)
  monkeypatch.setattr(apart, "is_faster", lambda: False)
  together = train(convnet(), MBF, seeds=(3, 4, 5), points=2)
  assert alone.losses.shape == (2, 3, 4)
  np.testing.assert_allclose(alone.losses, together.losses, rtol=1e-4)
  assert len(np.unique(alone.losses[..., -1])) == 6
  assert set(alone.metrics) == set(together.metrics)
  for name, values in alone.metrics.items():
    np.testing.assert_allclose(values, together.metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_runs_are_each_on_their_own_on_a_cpu_alone(monkeypatch, backend):
  monkeypatch.setattr(apart.jax, "default_backend", lambda: backend)
  assert apart.is_faster() == (backend == "cpu")


def test_results_come_in_the_order_of_runs_from_threads_at_once(monkeypatch):
  monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
  together = threading.Barrier(2)

  def run(index):
    together.wait(timeout=60)
    return index

  assert apart.each(run, (1, 2)) == [(0, 0), (0, 1)]
