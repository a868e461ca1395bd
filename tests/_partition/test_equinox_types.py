"""Equinox models by the types of their modules, whatever these are called."""

import equinox as eqx
import jax
import pytest

import mbf_optax
from tests._partition.shapes import array, axes

KEY = jax.random.key(0)


class Attention(eqx.Module):
  value: eqx.nn.Linear
  norm_proj: eqx.nn.Linear


class Scaled(eqx.nn.Linear):
  """A subclass is read as what it derives from."""


class Model(eqx.Module):
  time_embed: eqx.nn.Linear
  unnormalised_head: eqx.nn.Linear
  norm: Scaled
  wte: eqx.nn.Embedding
  table: eqx.nn.Embedding
  ln: eqx.nn.LayerNorm
  thing: eqx.nn.LayerNorm
  group: eqx.nn.GroupNorm
  rms: eqx.nn.RMSNorm
  cell: eqx.nn.GRUCell
  lstm: eqx.nn.LSTMCell
  attention: Attention
  layers: list
  experts: eqx.nn.Linear
  kernels: eqx.nn.Conv1d
  patches: eqx.nn.Conv2d
  transpose: eqx.nn.ConvTranspose2d

  def __init__(self):
    nn, key = eqx.nn, KEY
    self.time_embed = nn.Linear(8, 6, use_bias=False, key=key)
    self.unnormalised_head = nn.Linear(6, 5, key=key)
    self.norm = Scaled(5, 5, key=key)
    self.wte = nn.Embedding(9, 6, key=key)
    self.table = nn.Embedding(9, 6, key=key)
    self.ln = nn.LayerNorm((6, 5))
    self.thing = nn.LayerNorm((6, 5), use_bias=False)
    self.group = nn.GroupNorm(2, 6)
    self.rms = nn.RMSNorm(6)
    self.cell = nn.GRUCell(4, 6, key=key)
    self.lstm = nn.LSTMCell(4, 6, key=key)
    self.attention = Attention(nn.Linear(6, 6, key=key), nn.Linear(6, 4, key=key))
    self.layers = [nn.Conv1d(4, 5, 3, use_bias=False, key=key), jax.nn.relu]
    keys = jax.random.split(key, 3)
    self.experts = eqx.filter_vmap(lambda k: nn.Linear(4, 5, use_bias=False, key=k))(
      keys
    )
    self.kernels = eqx.filter_vmap(lambda k: nn.Conv1d(4, 5, 3, key=k))(keys)
    self.patches = nn.Conv2d(3, 8, 14, 14, key=key)
    self.transpose = nn.ConvTranspose2d(3, 8, 4, key=key)


EXPECTED = {
  "time_embed/weight": ("auto", (1,), (), False),
  "unnormalised_head/weight": ("auto", (1,), (), True),
  "norm/weight": ("auto", (1,), (), True),
  "wte/weight": ("rms", (), (), False),
  "table/weight": ("rms", (), (), False),
  "ln/weight": ("rms", (), (), False),
  "ln/bias": ("rms", (), (), False),
  "thing/weight": ("rms", (), (), False),
  "group/weight": ("rms", (), (), False),
  "rms/weight": ("rms", (), (), False),
  "cell/weight_ih": ("auto", (1,), (), False),
  "cell/weight_hh": ("auto", (1,), (), False),
  "cell/bias": ("rms", (), (), False),
  "lstm/weight_hh": ("auto", (1,), (), False),
  "attention/value/weight": ("auto", (1,), (), True),
  "attention/norm_proj/weight": ("auto", (1,), (), True),
  "layers/0/weight": ("auto", (2,), (), False),
  "experts/weight": ("auto", (2,), (0,), False),
  "kernels/weight": ("auto", (3,), (0,), False),
  "kernels/bias": ("inverse", (), (0,), False),
  "patches/weight": ("auto", (1, 2, 3), (), True),
  "transpose/weight": ("auto", (2, 3), (), False),
}


@pytest.fixture(scope="module")
def model():
  return Model()


def test_modules_are_known_by_their_types(model):
  partition = mbf_optax.equinox_partition(model)
  readings = partition(eqx.filter(model, eqx.is_inexact_array))
  found = {r.path: (r.layer.estimator, *axes(r)) for r in readings}
  assert {path: found[path] for path in EXPECTED} == EXPECTED
  assert all(r.why == "recognised" for r in readings)
  assert isinstance(hash(partition), int)


def test_without_the_model_whole_words_tell(model):
  """All but what names and shapes cannot tell."""
  readings = mbf_optax.equinox_partition()(eqx.filter(model, eqx.is_inexact_array))
  found = {r.path: (r.layer.estimator, *axes(r)) for r in readings}
  cannot = {"table/weight", "thing/weight", "layers/0/weight"}
  for path in EXPECTED.keys() - cannot:
    assert found[path] == EXPECTED[path], path


def test_overrides_beside_types(model):
  params = eqx.filter(model, eqx.is_inexact_array)
  overrides = [("wte", "shared"), ("time_embed", "rms"), ("layers/0", "dense")]
  partition = mbf_optax.equinox_partition(model, overrides=overrides)
  found = {r.path: (r.layer.estimator, *axes(r)) for r in partition(params)}
  assert found["wte/weight"] == ("shared", (1,), (), False)
  assert found["time_embed/weight"] == ("rms", (), (), False)
  assert found["layers/0/weight"] == ("auto", (1, 2), (), False)


@pytest.mark.parametrize("model", ["shared", {"kernel": array(3, 4)}])
def test_what_is_no_model(model):
  with pytest.raises(TypeError, match="for a model, in which no layer"):
    mbf_optax.equinox_partition(model)
