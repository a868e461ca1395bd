"""Public training programs go on working when only the optimizer's name is changed.

Each of ``tests/programs`` calls its optimizer as the original calls ``optax.adam`` and
knows nothing of this library.
"""

import warnings

import jax
import numpy as np
import optax
import pytest

import mbf_optax
from tests.programs import equinox_rnn, haiku_transformer, linen_vae

pytestmark = pytest.mark.promotes

ATTENTION = ("query/w", "key/w", "value/w", "linear/w")

# Steps, and the arrays that are read as blocks. The autoencoder takes 60 steps: between
# 120 and 200 the two losses lie within 0.5 per cent of each other, either way round.
PROGRAMS = {
  linen_vae: (
    60,
    {
      "encoder/fc1/kernel",
      "encoder/fc2_mean/kernel",
      "encoder/fc2_logvar/kernel",
      "decoder/fc1/kernel",
      "decoder/fc2/kernel",
    },
  ),
  equinox_rnn: (100, {"cell/weight_ih", "cell/weight_hh"}),  # one output: Adam's
  haiku_transformer: (
    60,
    {"linear/w"}
    | {f"multi_head_attention/{weight}" for weight in ATTENTION}
    | {f"multi_head_attention_1/{weight}" for weight in ATTENTION}
    | {f"linear_{index}/w" for index in range(1, 5)},
  ),
}


@pytest.fixture(autouse=True)
def _compiles_twice_as_fast():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


class Watched:
  """``mbf_adam`` whose warnings at ``init`` are errors. Keeps its reading."""

  def __call__(self, *args, **kwargs):
    tx = mbf_optax.mbf_adam(*args, **kwargs)

    def init(params):
      with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = tx.init(params)
      self.layers = mbf_optax.summarize(jax.eval_shape(lambda: params)).layers
      return state

    return optax.GradientTransformationExtraArgs(init, tx.update)


@pytest.mark.parametrize(
  "program",
  [
    pytest.param(linen_vae, marks=pytest.mark.slow),
    equinox_rnn,
    pytest.param(haiku_transformer, marks=pytest.mark.slow),
  ],
  ids=lambda program: program.__name__.split(".")[-1],
)
def test_only_the_name_of_the_optimizer_changes(program):
  steps, expected = PROGRAMS[program]
  watched = Watched()
  losses = np.array([program.main(tx, steps) for tx in (optax.adam, watched)])
  assert np.isfinite(losses).all()
  adam, ours = losses[:, -10:].mean(1)
  assert ours <= adam < losses[0, 0]
  blocks = {layer.path for layer in watched.layers if layer.reading != "rms"}
  assert blocks == expected
