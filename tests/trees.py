"""Parameter trees with every kind of layer, for the library and for the oracle."""

import jax
import numpy as np

import mbf_optax
from tests import reference

SHAPES = {
  "conv1d": {"kernel": (3, 2, 3), "bias": (3,)},
  "conv2d": {"kernel": (3, 2, 2, 3), "bias": (3,)},
  "conv3d": {"kernel": (2, 1, 2, 2, 2)},
  "conv_large": {"kernel": (9, 9, 1, 2)},
  "conv_shared": {"kernel": (3, 3, 2, 3), "bias": (3,)},
  "depthwise": {"kernel": (3, 3, 1, 4), "bias": (4,)},
  "pointwise": {"kernel": (1, 1, 4, 3), "bias": (3,)},
  "dense_full": {"kernel": (4, 3), "bias": (3,)},
  "dense_wide": {"kernel": (70, 2), "bias": (2,)},
  "dense_shared": {"kernel": (5, 4), "bias": (4,)},
  "dense_no_bias": {"kernel": (4, 3)},
  "dense_low_rank": {"kernel": (8, 3), "bias": (3,)},
  "attention": {
    "query": {"kernel": (4, 2, 3), "bias": (2, 3)},
    "out": {"kernel": (2, 3, 4), "bias": (4,)},
  },
  "stack": {
    "conv": {"kernel": (2, 3, 3, 2, 2), "bias": (2, 2)},
    "dense_full": {"kernel": (2, 3, 4), "bias": (2, 4)},
    "dense_low_rank": {"kernel": (2, 6, 3), "bias": (2, 3)},
    "dense_shared": {"kernel": (2, 4, 3), "bias": (2, 3)},
    "norm": {"scale": (2, 3), "bias": (2, 3)},
  },
  "embed": {"embedding": (5, 3)},
  "norm": {"scale": (4,), "bias": (4,)},
  "scalar": (),
}
RANK = 5

# A layer of every estimator, alone and stacked, and convolutions whose output channels
# fill matrices.
ADAM_SHAPES = {
  **{name: SHAPES[name] for name in ("conv2d", "dense_shared", "norm", "scalar")},
  "conv_wide": {"kernel": (2, 2, 3, 6), "bias": (6,)},
  "stack": SHAPES["stack"] | {"conv_wide": {"kernel": (2, 3, 2, 5), "bias": (2, 5)}},
}

PARTITION = mbf_optax.flax_partition(
  "full",
  rank=RANK,
  overrides=[("conv_large", "full"), ("shared", "shared"), ("low_rank", "low_rank")],
)


def adam_partition(block_limit: int = 256) -> mbf_optax.Partition:
  """For ``mbf_adam``, with two sides in the place of a low rank.

  Of a tree without the very large convolution.
  """
  return mbf_optax.flax_partition(
    "full",
    block_limit=block_limit,
    overrides=[("shared", "shared"), ("low_rank", "two_sided")],
  )


def flat_shapes(shapes: dict = SHAPES) -> dict[str, tuple[int, ...]]:
  """Shapes by ``"/"``-joined path."""

  def walk(prefix, node):
    if isinstance(node, tuple):
      yield prefix, node
    else:
      for key, child in node.items():
        yield from walk(f"{prefix}/{key}" if prefix else key, child)

  return dict(walk("", shapes))


def nested(flat: dict[str, np.ndarray], shapes: dict = SHAPES) -> dict:
  """The nested tree of arrays given by path."""

  def build(prefix, node):
    if isinstance(node, tuple):
      return flat[prefix]
    return {k: build(f"{prefix}/{k}" if prefix else k, c) for k, c in node.items()}

  return build("", shapes)


def flat(tree: dict) -> dict:
  """The leaves of such a tree by path: the inverse of `nested`."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {"/".join(entry.key for entry in path): leaf for path, leaf in pairs}


def joined(layers: list[reference.Layer]) -> list[tuple[str, ...]]:
  """Names of the leaves whose elements share mini-blocks, for every layer."""
  names = []
  for layer in layers:
    leaves = [name for name in (layer.kernel, layer.bias) if name]
    apart = layer.kind in ("conv", "elementwise")
    names += [(name,) for name in leaves] if apart else [tuple(leaves)]
  return names


def oracle_layers(low_rank: str = "low_rank") -> list[reference.Layer]:
  """The same layers written out by hand for the oracles."""
  conv, dense = ("conv",), ("dense",)

  def layer(kind, module, estimator="full", bias=True, stacked=False):
    return reference.Layer(
      kind,
      f"{module}/kernel",
      f"{module}/bias" if bias else None,
      estimator=estimator,
      rank=RANK,
      stacked=stacked,
    )

  rms = ("embed/embedding", "norm/scale", "norm/bias", "scalar")
  return [
    layer(*conv, "conv1d"),
    layer(*conv, "conv2d"),
    layer(*conv, "conv3d", bias=False),
    layer(*conv, "conv_large", bias=False),
    layer(*conv, "conv_shared", "shared"),
    layer(*conv, "depthwise"),
    layer(*dense, "pointwise"),
    layer(*dense, "dense_full"),
    layer(*dense, "dense_wide"),
    layer(*dense, "dense_shared", "shared"),
    layer(*dense, "dense_no_bias", bias=False),
    layer(*dense, "dense_low_rank", low_rank),
    layer("attention_in", "attention/query"),
    layer("attention_out", "attention/out"),
    layer(*conv, "stack/conv", stacked=True),
    layer(*dense, "stack/dense_full", stacked=True),
    layer(*dense, "stack/dense_low_rank", low_rank, stacked=True),
    layer(*dense, "stack/dense_shared", "shared", stacked=True),
    *[reference.Layer("elementwise", name) for name in rms],
    *[reference.Layer("elementwise", f"stack/norm/{n}") for n in ("scale", "bias")],
  ]


def adam_oracle_layers() -> list[reference.Layer]:
  """Those of ``ADAM_SHAPES``; an output channel of a wide convolution is a neuron."""
  here = flat_shapes(ADAM_SHAPES)
  layers = [layer for layer in oracle_layers("both") if layer.kernel in here]
  for name, stacked in (("conv_wide", False), ("stack/conv_wide", True)):
    kernel = reference.Layer("dense", f"{name}/kernel", None, "both", stacked=stacked)
    layers += [kernel, reference.Layer("elementwise", f"{name}/bias")]
  return layers


def random_gradients(
  seed: int, count: int, scale: float = 1.0, shapes: dict = SHAPES
) -> list[dict[str, np.ndarray]]:
  """Gradients by path, correlated over steps as those of training are."""
  rng = np.random.default_rng(seed)
  means = {path: rng.normal(size=shape) for path, shape in flat_shapes(shapes).items()}
  return [
    {p: scale * (m + rng.normal(size=m.shape)) for p, m in means.items()}
    for _ in range(count)
  ]


def largest_relative_error(
  actual: dict, expected: dict[str, np.ndarray], layers: list[reference.Layer]
) -> float:
  """Largest error of a layer relative to the largest element of that layer.

  A layer here is what mini-blocks join: a kernel and the bias that is part of its
  blocks, else a lone leaf. A block's inverse mixes its elements, so it rounds a bias as
  coarsely as the weights beside it, however small the bias is at that step.
  """
  actual = flat(actual)
  errors = []
  for names in joined(layers):
    wrong = [np.asarray(actual[name], float) - expected[name] for name in names]
    largest = max(np.max(np.abs(expected[name])) for name in names)
    errors.append(max(np.max(np.abs(leaf)) for leaf in wrong) / largest)
  return max(errors)
