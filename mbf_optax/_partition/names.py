"""What the names of arrays and modules say, word by word.

A name is split into its words (``LayerNorm_0`` into "layer" and "norm", ``time_embed``
into "time" and "embed"), since parts of words mislead: ``unnormalised`` is no norm.
"""

import functools
import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PLAIN_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_BIASES = {"b", "bias", "biases"}
_WEIGHTS = {"w", "weight", "weights", "kernel", "kernels", "matrix"}
_NORMS = {"norm", "norms", "layernorm", "rmsnorm", "batchnorm", "groupnorm"}
_NORMS |= {"instancenorm", "ln", "bn", "gn", "rms"}
_SCALES = {"scale", "scales", "gamma", "beta", "gain", "offset", "shift"}
# Decay rates and deviations are kept so; no product takes them as they are.
_LOGARITHMS = {"log"}
_EMBEDDINGS = {"emb", "embed", "embeds", "embedding", "embeddings", "embedder"}
_EMBEDDINGS |= {"wte", "wpe", "lookup"}
_PLACES = {
  "pos",
  "position",
  "positions",
  "positional",
  "token",
  "tokens",
  "tok",
  "cls",
}
# What these embed are numbers, so that it takes a dense layer.
_NUMBERS = {"time", "timestep", "sigma", "noise", "snr", "logsnr", "freq", "fourier"}
_NUMBERS |= {"patch", "pixel", "image", "feature", "features"}
_CONVOLUTIONS = {"conv", "convs", "convolution", "depthwise", "pointwise", "deconv"}
_DENSE = {"dense", "linear", "fc", "ffn", "mlp", "expert", "experts"}
_DENSE_PROJECTIONS = {"gate", "up", "down"}
_SEVERAL_AXES = {"general", "einsum"}
_QUERIES = {"query", "key", "value", "q", "k", "v", "qkv", "kv"}
_OUTPUTS = {"out", "output", "o"}
_PROJECTIONS = {"proj", "projection", "to", "kernel", "dense", "linear"}


@functools.lru_cache(maxsize=4096)
def words(name: str) -> tuple[str, ...]:
  """The words of a name in lower case, without its numbers."""
  return tuple(word.lower() for word in _WORD.findall(name))


def says_elementwise(name: str) -> bool:
  """Whether an array of this name is a norm's, an embedding, a bias or alike."""
  kinds = _NORMS | _SCALES | _EMBEDDINGS | _PLACES | _LOGARITHMS | _BIASES - {"b"}
  return not kinds.isdisjoint(words(name))


def says_scale(name: str) -> bool:
  """Whether a vector of this name is a norm's or a position and so no bias."""
  kinds = _NORMS | _SCALES - {"beta", "offset", "shift"} | _EMBEDDINGS | _PLACES
  return not kinds.isdisjoint(words(name))


def says_embedding(module: str) -> bool:
  """Whether a module of this name looks its rows up; ``time_embed`` does not."""
  found = words(module)
  return bool(found) and found[-1] in _EMBEDDINGS and _NUMBERS.isdisjoint(found)


def says_norm(module: str) -> bool:
  """Whether a module of this name normalises: its first or last word says so."""
  found = words(module)
  return bool(found) and (found[0] in _NORMS or found[-1] in _NORMS)


def says_convolution(module: str) -> bool:
  """Whether a module of this name is a convolution."""
  return not _CONVOLUTIONS.isdisjoint(words(module))


def says_dense(module: str) -> bool:
  """Whether a module of this name has weights of one input and one output axis."""
  found = set(words(module))
  if not found.isdisjoint(_SEVERAL_AXES | _CONVOLUTIONS | _QUERIES | _OUTPUTS):
    return False
  return bool(found & _DENSE) or bool(found & _DENSE_PROJECTIONS and "proj" in found)


def says_several_axes(module: str) -> bool:
  """Whether a module of this name may have several axes of inputs or of outputs."""
  return not _SEVERAL_AXES.isdisjoint(words(module))


def says_attention_input(module: str) -> bool:
  """Whether a module of this name makes queries, keys or values."""
  found = set(words(module))
  return bool(found & _QUERIES) and found <= _QUERIES | _PROJECTIONS


def says_attention_output(module: str) -> bool:
  """Whether a module of this name gathers the heads of attention."""
  found = set(words(module))
  return bool(found & _OUTPUTS) and found <= _OUTPUTS | _PROJECTIONS | {"attn"}


def says_bias(name: str) -> bool:
  """Whether an array of this name may be a bias: ``b1``, ``fc_bias``, ``bq``."""
  return name[:1] in ("b", "B") or not _BIASES.isdisjoint(words(name))


def is_index(name: str) -> bool:
  """Whether a key is a place in a list or a tuple."""
  return name.isdecimal()


@functools.lru_cache(maxsize=4096)
def stems(name: str) -> frozenset[tuple[str, ...]]:
  """What is left of a name without the words for a weight and a bias.

  ``fc1_w`` and ``fc1_b`` share ``("fc", "1")``, ``Wq`` and ``bq`` share ``("q",)``.
  """
  tokens = [token.lower() for token in _PLAIN_TOKEN.findall(name)]
  kept = tuple(token for token in tokens if token not in _BIASES | _WEIGHTS)
  found = {kept}
  if name[:1] in ("w", "W", "b", "B") and len(name) > 1 and name[1:].isalpha():
    found.add((name[1:].lower(),))
  return frozenset(found)
