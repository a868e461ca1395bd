"""What tests of traced partitions share."""

import jax
import jax.numpy as jnp
from jax import lax

import mbf_optax


def array(*shape, dtype=jnp.float32):
  """An abstract array."""
  return jax.ShapeDtypeStruct(shape, dtype)


def read(loss, params, *args, **arguments):
  """Readings by path: block axes, stacked axes, estimator, and the bias with its axes.

  The bias's axes are those of the weight, ``()`` where there is none.
  """
  readings = mbf_optax.traced_partition(loss, params, *args, **arguments)(params)
  return {r.path: described(r) for r in readings}


def described(reading):
  layer = reading.layer
  bias = () if reading.bias_path is None else (reading.bias_path, reading.bias_axes)
  return (layer.block_axes, layer.stack_axes, layer.estimator, *bias)


def unread(loss, params, *args):
  """The reasons for arrays that are read element by element, by path."""
  return dict(mbf_optax.traced_partition(loss, params, *args).unread)


RMS = ((), (), "rms")


def dense(block, stack=(), bias=None, axes=()):
  return (block, stack, "auto", *(() if bias is None else (bias, axes)))


def kernel(block, stack=(), estimator="auto"):
  return (block, stack, estimator)


def alone(stack=()):
  """A bias beside a convolution."""
  return ((), stack, "inverse")


def mean(model):
  """A loss over what the model returns."""
  return lambda params, *args: jnp.mean(model(params, *args) ** 2)


NUMBERS = ("NHWC", "HWIO", "NHWC")


def convolution(p, x, strides=(1, 1), **arguments):
  y = lax.conv_general_dilated(
    x, p["k"], strides, "SAME", dimension_numbers=NUMBERS, **arguments
  )
  return y + p["b"]
