"""The experiments' data, and the networks that they pass it through."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import models
from benchmarks.paper import data, tasks
from benchmarks.paper.curves import curves
from benchmarks.paper.experiment import Options
from examples.data import Data

QUICK = Options(scale="quick")
pytestmark = pytest.mark.promotes


def test_networks_in_half_precision():
  """Their products; not parameters, gradients, averages, losses or metrics."""
  x = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
  y = np.arange(40, dtype=np.int32) % 10
  images, model = Data(x, y, x, y), models.ResNet(8, width=2)
  half = tasks.classification("half", model, images, 4, 1, dtype=jnp.bfloat16)
  whole = tasks.classification("whole", model, images, 4, 1)
  variables, key = half.init(jax.random.key(0)), jax.random.key(1)
  batch = images.x_train[:4], images.y_train[:4]

  def gradient(task, params):
    def loss(params):
      return task.loss({**variables, "params": params}, batch, key)

    return jax.value_and_grad(loss, has_aux=True)(params)

  found = gradient(half, variables["params"]), half.metrics(variables, batch)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  expected = gradient(whole, variables["params"]), whole.metrics(variables, batch)
  chex.assert_trees_all_close(found[0], expected[0], rtol=0.2, atol=0.1)
  program = jax.make_jaxpr(functools.partial(gradient, half))(variables["params"])
  products = re.findall(r":(\w+)\[[\d,]+\] = conv_general_dilated", str(program))
  assert len(products) > 6
  assert {*products} == {"bf16"}


def test_curves_lie_inside_the_frame_and_repeat():
  images = curves(40, seed=1)
  assert images.shape == (40, 28, 28)
  assert 0 <= images.min() < 0.01
  assert 0.9 < images.max((1, 2)).min() <= images.max() <= 1
  frame = np.ones((28, 28), bool)
  frame[1:-1, 1:-1] = False
  assert images[:, frame].max() < 0.15
  np.testing.assert_array_equal(images, curves(40, seed=1))
  assert not np.allclose(images, curves(40, seed=2))


def test_halving_averages_four_pixels():
  images = data.images("mnist", QUICK)
  half = data.halved(images)
  assert half.x_train.shape[1:] == (14, 14, 1)
  np.testing.assert_allclose(
    half.x_test[:, 2, 5], images.x_test[:, 4:6, 10:12].mean((1, 2)), rtol=1e-6
  )


def test_augmentation_flips_and_shifts():
  batch = np.zeros((64, 9, 9, 1), np.float32)
  batch[:, 3, 6] = 1
  out = np.asarray(
    jax.jit(functools.partial(data.augment, pad=1))(jax.random.key(0), batch)
  )
  rows, columns = np.nonzero(out[..., 0].any(0))
  assert set(rows) == {2, 3, 4}
  assert set(columns) == {1, 2, 3, 5, 6, 7}
  np.testing.assert_array_equal(out.sum((1, 2, 3)), 1)


@pytest.mark.parametrize("load", [data.faces, data.text, data.cora])
def test_missing_data_is_named_with_a_remedy(load, tmp_path):
  with pytest.raises(SystemExit, match=r"is not in .*--extra-data"):
    load(Options(scale="cpu", extra_data=tmp_path))
