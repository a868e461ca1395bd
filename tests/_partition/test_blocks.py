"""From parameters to block vectors and back, against indices written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbf_optax._partition.blocks import from_blocks, to_blocks
from mbf_optax._partition.layer import Bias, Layer, read

CASES = {
  "dense": (read("w", (3, 4), Layer((0,)), Bias("b", (4,))), "io->io"),
  "transposed": (read("w", (4, 3), Layer((1,)), Bias("b", (4,))), "oi->io"),
  "stack": (read("w", (2, 3, 4), Layer((1,), "full", (0,))), "sio->iso"),
  "stack on axis one": (
    read("w", (3, 2, 4), Layer((0,), "full", (1,)), Bias("b", (2, 4))),
    "iso->iso",
  ),
  "outputs before the stack": (
    read("w", (4, 3, 2), Layer((1,), "full", (2,)), Bias("b", (4, 2))),
    "ois->iso",
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_back(name):
  reading, order = CASES[name]
  rng = np.random.default_rng(0)
  leaves = {"w": jnp.asarray(rng.normal(size=reading.shape), jnp.float32)}
  expected = np.einsum(order, leaves["w"])
  if reading.bias_path:
    leaves["b"] = jnp.asarray(rng.normal(size=reading.bias_shape), jnp.float32)
    bias = leaves["b"]
    last = bias.T if name == "outputs before the stack" else bias
    expected = np.concatenate([expected, last[None]])
  blocks = to_blocks(reading, leaves)
  np.testing.assert_array_equal(blocks, expected)
  back = from_blocks(reading, blocks)
  assert back.keys() == leaves.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(back[path], leaf)


def test_spatial_offsets_of_a_convolution_are_a_block():
  reading = read("w", (2, 3, 4, 5), Layer((0, 1), joins_bias=False))
  array = jnp.arange(120.0).reshape(2, 3, 4, 5)
  np.testing.assert_array_equal(
    to_blocks(reading, {"w": array}), array.reshape(6, 4, 5)
  )


def test_elements_and_narrow_numbers():
  reading = read("w", (3,), Layer((), "rms"))
  array = jnp.arange(3, dtype=jnp.bfloat16)
  blocks = to_blocks(reading, {"w": array})
  assert (blocks.shape, blocks.dtype) == ((1, 3), jnp.float32)
  np.testing.assert_array_equal(from_blocks(reading, blocks)["w"], [0, 1, 2])
