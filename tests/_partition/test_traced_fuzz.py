"""Random einsums, convolutions and scans are traced to the axes they are built from."""

import itertools
import math

import hypothesis
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st
from jax import lax

import mbf_optax
from tests._partition.traced import array, described, read

pytestmark = pytest.mark.promotes

SIZES = dict(zip("abcdefgh", (2, 3, 5, 7, 11, 13, 17, 19), strict=True))


@st.composite
def einsums(draw):
  """Weight, data and output indices; the roles of the weight's are known by name."""
  letters = draw(st.permutations(sorted(SIZES)))
  counts = [draw(st.integers(low, 2)) for low in (1, 0, 0, 0)]
  names = iter(letters)
  contracted, counted, stacked, rows = (
    list(itertools.islice(names, count)) for count in counts
  )
  weight = draw(st.permutations(contracted + counted + stacked))
  data = draw(st.permutations(contracted + stacked + rows))
  output = draw(st.permutations(counted + stacked + rows))
  return weight, data, output, set(contracted), set(stacked)


@hypothesis.given(einsums(), st.booleans(), st.data())
@hypothesis.settings(max_examples=40)
def test_einsums(case, with_bias, data):
  weight, other, output, contracted, stacked = case
  hypothesis.assume(len(weight) > 1)
  kept = [name for name in weight if name not in contracted]
  bias = data.draw(st.permutations(kept))
  order = sorted(bias, key=output.index)

  def loss(p, x):
    equation = f"{''.join(weight)},{''.join(other)}->{''.join(output)}"
    y = jnp.einsum(equation, p["w"], x)
    if with_bias:
      b = jnp.transpose(p["b"], [bias.index(name) for name in order])
      y = y + b.reshape([SIZES[name] if name in bias else 1 for name in output])
    return jnp.mean(jnp.tanh(y))

  shapes = {"w": weight, "b": bias} if with_bias and kept else {"w": weight}
  with_bias = with_bias and bool(kept)
  params = {key: array(*(SIZES[n] for n in names)) for key, names in shapes.items()}
  found = read(loss, params, array(*(SIZES[name] for name in other)))
  block = tuple(i for i, name in enumerate(weight) if name in contracted)
  stack = tuple(i for i, name in enumerate(weight) if name in stacked)
  axes = ("b", tuple(weight.index(name) for name in bias)) if with_bias else ()
  assert found == {"w": (block, stack, "auto", *axes)}


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_convolutions(data):
  draw = data.draw
  spatial = "DHW"[: draw(st.integers(1, 3))]
  window = tuple(draw(st.integers(1, 4)) for _ in spatial)
  strides = tuple(draw(st.integers(1, 3)) for _ in spatial)
  dilation = tuple(draw(st.integers(1, 2)) for _ in spatial)
  groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
  specs = tuple(
    "".join(draw(st.permutations(ends + spatial))) for ends in ("NC", "OI", "NC")
  )
  sizes = {"N": 2, "C": inputs * groups, "I": inputs, "O": outputs * groups}
  sizes |= zip((c for c in specs[1] if c in spatial), window, strict=True)
  kernel = [sizes[c] for c in specs[1]]
  image = [9 if c in spatial else sizes[c] for c in specs[0]]

  def loss(p, x):
    y = lax.conv_general_dilated(
      *(x, p["k"], strides, "SAME"),
      rhs_dilation=dilation,
      dimension_numbers=specs,
      feature_group_count=groups,
    )
    return jnp.mean(jnp.tanh(y))

  params = {"k": array(*kernel)}
  (reading,) = mbf_optax.traced_partition(loss, params, array(*image))(params)
  found, channels = described(reading), specs[1].index("I")
  offsets = tuple(i for i, c in enumerate(specs[1]) if c in spatial)
  if math.prod(window) == 1 or window == strides:
    both = tuple(sorted((*offsets, channels)))
    assert found == (both, (), "auto")
  else:
    assert found == (offsets, (), "auto")
    assert reading.layer.channel_axes == (channels,)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=20)
def test_scans(data):
  """Loops in loops over random axes of an array, with their biases."""
  depth = data.draw(st.integers(1, 3))
  axes = data.draw(st.permutations(range(depth + 2)))
  order = data.draw(st.permutations(range(depth + 1)))
  *stack, inputs, outputs = axes
  sizes = dict(zip(axes, (*(2, 3, 5)[:depth], 4, 4), strict=True))

  def layer(x, wb):
    w, b = wb
    if w.ndim > 2:
      return lax.scan(layer, x, wb)
    return jnp.tanh(x @ w + b), None

  def loss(p, x):
    w = jnp.transpose(p["w"], axes)
    b = jnp.transpose(p["b"], [order.index(i) for i in range(depth + 1)])
    return jnp.mean(lax.scan(layer, x, (w, b))[0])

  counted = (*stack, outputs)
  params = {
    "w": array(*(sizes[axis] for axis in range(depth + 2))),
    "b": array(*(sizes[counted[i]] for i in order)),
  }
  bias = ("b", tuple(counted[i] for i in order))
  assert read(loss, params, array(3, 4)) == {
    "w": ((inputs,), tuple(sorted(stack)), "auto", *bias)
  }
