"""Layer inputs and output gradients of a Flax Linen model, in one backward pass.

An interceptor adds zeros, the taps, to the output of every dense and convolution layer
while the loss is computed. The loss's gradient with respect to a layer's tap is its
gradient with respect to the layer's output, and comes from the same backward pass as
the gradient of the parameters.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.baselines import common


class Factors(NamedTuple):
  """The Kronecker factors whose product approximates a layer's Fisher matrix.

  Attributes:
    inputs: ``(n_in, n_in)``, ``A``: second moments of the layer's inputs, kernel order,
      with a last one for the bias where the layer has one.
    outputs: ``(n_out, n_out)``, ``G``: second moments of the output gradients.
  """

  inputs: jax.Array
  outputs: jax.Array


class Captured(NamedTuple):
  """What :func:`capture` returns.

  Attributes:
    value: what the loss returned, the auxiliary output included.
    gradients: of the loss, like the parameters.
    factors: of every dense and convolution layer, by its path such as ``"Dense_0"``.
  """

  value: Any
  gradients: optax.Updates
  factors: dict[str, Factors]


class Linearized(NamedTuple):
  """What :func:`linearize` returns.

  Attributes:
    outputs: of the function.
    aux: its auxiliary output.
    pull: from a cotangent of the outputs to the gradients of the parameters and to the
      factors, one backward pass.
  """

  outputs: jax.Array
  aux: Any
  pull: Callable[[jax.Array], tuple[optax.Updates, dict[str, Factors]]]


def linearize(
  function: Callable[[optax.Params], tuple[jax.Array, Any]], params: optax.Params
) -> Linearized:
  """One forward pass that serves any number of backward passes.

  KFAC wants the gradient at the data's labels and factors at labels drawn from the
  model's outputs: two backward passes after one forward pass.

  Args:
    function: applies Linen modules to ``{"params": params}`` and returns outputs and
      anything.
    params: the ``params`` collection.

  Returns:
    The outputs and the backward pass. Its cotangents are those of a *mean* over
    examples.
  """

  def tapped(params: optax.Params, taps: dict[str, jax.Array]) -> Any:
    with _interception(taps) as inputs:
      outputs, aux = function(params)
    return outputs, (aux, inputs)

  taps = jax.eval_shape(lambda: _outputs(function, params))
  taps = jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), taps)
  outputs, pull, (aux, inputs) = jax.vjp(tapped, params, taps, has_aux=True)

  def pulled(cotangent: jax.Array) -> tuple[optax.Updates, dict[str, Factors]]:
    gradients, signals = pull(cotangent)
    return gradients, {path: _factors(inputs[path], signals[path]) for path in taps}

  return Linearized(outputs, aux, pulled)


def capture(
  loss: Callable[..., Any], params: optax.Params, *args: Any, has_aux: bool = False
) -> Captured:
  r"""Loss, gradients and Kronecker factors in one forward and one backward pass.

  For examples :math:`n = 1 \dots N` and positions :math:`t = 1 \dots T` (the offsets of
  a convolution's output, further axes of a dense layer's input; :math:`T = 1` else),
  with inputs or patches :math:`a_{nt}` and the gradients :math:`g_{nt}` of example
  :math:`n`'s own loss,

  .. math::
    A = \frac{1}{N} \sum_{n,t} a_{nt} a_{nt}^T, \qquad
    G = \frac{1}{N T} \sum_{n,t} g_{nt} g_{nt}^T

  The labels in the loss decide what the factors estimate: the data's own labels give
  the empirical Fisher matrix, labels sampled from the model the Fisher matrix.

  Args:
    loss: ``loss(params, *args)``, which applies Linen modules to ``{"params": params}``
      and returns the *mean* of the examples' losses, or a pair of it and anything.
    params: the ``params`` collection.
    *args: further arguments of the loss.
    has_aux: whether the loss returns a pair, as for ``jax.value_and_grad``.

  Returns:
    The value, the gradients and the factors.

  Raises:
    ValueError: for a layer that is applied twice, and for convolutions that are
      grouped, input-dilated, circular or not of one batch axis.

  References:
    Martens and Grosse, `Optimizing Neural Networks with Kronecker-factored Approximate
    Curvature <https://arxiv.org/abs/1503.05671>`_, 2015; Grosse and Martens, `A
    Kronecker-factored Approximate Fisher Matrix for Convolution Layers
    <https://arxiv.org/abs/1602.01407>`_, 2016, equations 22 to 25.
  """

  def scalar(params: optax.Params) -> tuple[jax.Array, Any]:
    value = loss(params, *args)
    return (value[0] if has_aux else value), value

  linear = linearize(scalar, params)
  return Captured(linear.aux, *linear.pull(jnp.ones_like(linear.outputs)))


def _outputs(
  function: Callable[..., Any], params: optax.Params
) -> dict[str, jax.Array]:
  """The outputs of all layers that have factors."""
  outputs: dict[str, jax.Array] = {}

  def interceptor(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    output = call(*args, **kwargs)
    if _has_factors(context):
      path = _path(context.module)
      if path in outputs:
        raise ValueError(f"The layer {path!r} is applied twice; KFAC reads it once.")
      outputs[path] = output
    return output

  with nn.intercept_methods(interceptor):
    function(params)
  return outputs


@contextmanager
def _interception(taps: dict[str, jax.Array]) -> Iterator[dict[str, jax.Array]]:
  """Adds the taps to the layers' outputs and collects the layers' input vectors."""
  inputs: dict[str, jax.Array] = {}

  def interceptor(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    output = call(*args, **kwargs)
    if not _has_factors(context):
      return output
    path = _path(context.module)
    inputs[path] = _input_vectors(context.module, *args, **kwargs)
    return output + taps[path]

  with nn.intercept_methods(interceptor):
    yield inputs


def _has_factors(context: Any) -> bool:
  is_layer = isinstance(context.module, nn.Dense | nn.Conv)
  return is_layer and context.method_name == "__call__"


def _path(module: nn.Module) -> str:
  return "/".join(module.path)


def _input_vectors(module: nn.Module, inputs: jax.Array) -> jax.Array:
  """``(N, T, n_in)``: what a neuron's weights and bias are multiplied with."""
  inputs = common.as_float(inputs)
  if isinstance(module, nn.Conv):
    inputs = _patches(module, inputs)
  vectors = inputs.reshape(len(inputs), -1, inputs.shape[-1])
  if not module.use_bias:
    return vectors
  return jnp.concatenate([vectors, jnp.ones_like(vectors[..., :1])], axis=-1)


def _patches(module: nn.Conv, inputs: jax.Array) -> jax.Array:
  """Inputs at the kernel's offsets, ``(N, *positions, offsets * channels)``."""
  size = module.kernel_size
  size = (size,) if isinstance(size, int) else tuple(size)
  rank, channels = len(size), inputs.shape[-1]
  padding = nn.linear.canonicalize_padding(module.padding, rank)
  supported = (
    module.feature_group_count == 1
    and set(_per_axis(module.input_dilation, rank)) == {1}
    and padding not in ("CIRCULAR", "CAUSAL", "REFLECT")
    and inputs.ndim == rank + 2
  )
  if not supported:
    raise ValueError(
      f"KFAC has no patches for the convolution {_path(module)!r}: it must have one"
      " group, no input dilation, zero padding and inputs of one batch axis."
    )
  spatial = "DHW"[3 - rank :]
  numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
  patches = jax.lax.conv_general_dilated_patches(
    inputs,
    size,
    _per_axis(module.strides, rank),
    padding,
    rhs_dilation=_per_axis(module.kernel_dilation, rank),
    dimension_numbers=numbers,
    precision=common.HIGHEST,
  )
  patches = patches.reshape(*patches.shape[:-1], channels, math.prod(size))
  return patches.swapaxes(-1, -2).reshape(*patches.shape[:-2], -1)


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
  if value is None or isinstance(value, int):
    return (value or 1,) * rank
  return tuple(value)


def _factors(inputs: jax.Array, signals: jax.Array) -> Factors:
  """Second moments of inputs and of output gradients.

  The signals are those of a mean over the ``N`` examples, ``1 / N`` of an example's.
  """
  examples, positions, _ = inputs.shape
  inputs = inputs.reshape(examples * positions, -1)
  signals = common.as_float(signals).reshape(examples * positions, -1)
  return Factors(
    inputs=common.outer(inputs.T) / examples,
    outputs=common.outer(signals.T) * (examples / positions),
  )
