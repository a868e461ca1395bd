"""What names say, by names that people give."""

import pytest

from mbf_optax._partition import names


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("LayerNorm_0", ("layer", "norm")),
    ("time_embed", ("time", "embed")),
    ("MLPBlock", ("mlp", "block")),
    ("conv2d", ("conv", "d")),
    ("qkv", ("qkv",)),
    ("W", ("w",)),
    ("unnormalised", ("unnormalised",)),
    ("_12", ()),
  ],
)
def test_names_fall_into_words(name, words):
  assert names.words(name) == words


SAYINGS = {
  names.says_elementwise: ("scale wte pos_embed ln_1 fc_bias", "b1 W kernel unscaled"),
  names.says_scale: ("gamma rms_scale wpe cls_token", "beta offset shift bias b"),
  names.says_embedding: ("embed wte TokenEmbedding", "time_embed embed_out _0 dense"),
  names.says_norm: ("LayerNorm_0 norm1 q_norm ln_f", "my_norm_dense enormous _0"),
  names.says_convolution: ("Conv_0 depthwise conv2d", "convex linear"),
  names.says_dense: (
    "Dense_0 fc1 gate_proj up_proj experts",
    "gate up DenseGeneral_0 q_proj linear_out conv_dense proj",
  ),
  names.says_several_axes: ("DenseGeneral_0 Einsum_1", "generally dense"),
  names.says_attention_input: ("q query_proj qkv to_k kv_2", "proj query_head out"),
  names.says_attention_output: ("out o_proj attn_out to_out", "attn output_head q"),
  names.says_bias: ("b b1 bq Bias fc_bias fc_b", "kernel fc_w scale"),
  names.is_index: ("0 12", "-1 a0"),
}


@pytest.mark.parametrize("says", SAYINGS, ids=lambda says: says.__name__)
def test_what_names_say(says):
  yes, no = SAYINGS[says]
  assert [name for name in yes.split() if not says(name)] == []
  assert [name for name in no.split() if says(name)] == []
  assert not says("")


@pytest.mark.parametrize(
  ("weight", "bias"),
  [
    ("fc1_w", "fc1_b"),
    ("Wq", "bq"),
    ("kernel", "bias"),
    ("w1", "b1"),
    ("hidden_weights", "hidden_biases"),
  ],
)
def test_a_weight_and_its_bias_share_a_stem(weight, bias):
  assert names.stems(weight) & names.stems(bias)


@pytest.mark.parametrize(
  ("weight", "bias"),
  [("fc1_w", "fc2_b"), ("Wq", "bk"), ("w1", "b2"), ("w", "b1"), ("out", "beta")],
)
def test_a_weight_and_the_bias_of_another_share_none(weight, bias):
  assert not names.stems(weight) & names.stems(bias)
