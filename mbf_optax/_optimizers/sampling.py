"""Labels sampled from the model's own distribution, for MBF-True.

The gradient of the loss at sampled labels, averaged over a mini-batch, gives the
statistics of the Fisher matrix where the gradient at the data's labels gives those of
the empirical one (Algorithm 4 of the paper). Pass it as ``curvature_gradients``.

Random numbers are drawn in float32 or wider: in half precision many coincide, and the
first class would win every tie.
"""

import jax
import jax.numpy as jnp

from mbf_optax._tree.dtypes import as_float


def sample_labels(logits: jax.Array, key: jax.Array) -> jax.Array:
  """Classes sampled from a categorical distribution.

  Args:
    logits: ``(..., classes)``, unnormalised log-probabilities.
    key: a JAX random key.

  Returns:
    Integer labels ``(...)``, for a cross-entropy with integer labels.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> logits = jnp.array([[-1e9, 0.0], [0.0, -1e9]])
    >>> print(mbf_optax.sample_labels(logits, jax.random.key(0)))
    [1 0]
  """
  return jax.random.categorical(key, as_float(jax.lax.stop_gradient(logits)))


def sample_bernoulli(logits: jax.Array, key: jax.Array) -> jax.Array:
  """Binary targets sampled element by element, for a sigmoid cross-entropy.

  Args:
    logits: ``(...)``, log-odds of a one.
    key: a JAX random key.

  Returns:
    Zeros and ones in the logits' shape and dtype.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> print(mbf_optax.sample_bernoulli(jnp.array([100.0, -100.0]), jax.random.key(0)))
    [1. 0.]
  """
  odds = as_float(jax.lax.stop_gradient(logits))
  return jax.random.bernoulli(key, jax.nn.sigmoid(odds)).astype(logits.dtype)


def sample_gaussian(
  mean: jax.Array, key: jax.Array, scale: jax.typing.ArrayLike = 1.0
) -> jax.Array:
  """Targets sampled around predictions, for a squared error.

  Args:
    mean: ``(...)``, the model's predictions.
    key: a JAX random key.
    scale: standard deviation; 1 belongs to the loss ``(prediction - target)^2 / 2``.

  Returns:
    Targets in the shape of ``mean``, float32 or wider: half precision would round them
    to a few hundred distinct values.

  Examples:
    >>> import jax, jax.numpy as jnp, mbf_optax
    >>> mbf_optax.sample_gaussian(jnp.zeros(3), jax.random.key(0)).shape
    (3,)
  """
  wide = as_float(jax.lax.stop_gradient(mean))
  noise = jax.random.normal(key, wide.shape, wide.dtype)
  return wide + jnp.asarray(scale, wide.dtype) * noise
