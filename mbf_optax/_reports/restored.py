"""Whether a restored state belongs to the optimizer that is to go on with it.

A state is arrays only and holds no version number: a release that changes what a field
means renames or reshapes it, so that the layout tells.
"""

from typing import Any

import jax
import optax

from mbf_optax._optimizers.found import plain
from mbf_optax._tree import checks


def check_state(
  tx: optax.GradientTransformation, state: Any, params: optax.Params
) -> None:
  """Refuses a state that ``tx`` did not make for these parameters.

  Compares names, shapes and dtypes with those of ``tx.init(params)``; nothing is
  allocated, and all three may be given as shapes. A state of another partition, of
  other parameters or of a release with another layout is refused by the first entry
  that differs, whose path holds the layer's. Both optimizers make the same check of
  their layers in every ``update``, when it is traced.

  Containers are compared by their keys alone, so that a checkpoint can be checked by
  its metadata before anything is read. With orbax, whose own restore names no layer::

    metadata = checkpointer.metadata(path).item_metadata
    mbf_optax.check_state(tx, metadata["state"], params)
    like = {"params": params, "state": jax.eval_shape(tx.init, params)}
    restored = checkpointer.restore(path, like)

  Args:
    tx: the transformation that is to go on, any chain or wrapper.
    state: what was restored, or a tree of the same keys whose leaves have a shape and a
      dtype.
    params: the parameters, arrays or ``jax.ShapeDtypeStruct``.

  Raises:
    ValueError: naming the first entry that differs, what it is and what it should be.

  Examples:
    >>> import jax.numpy as jnp, mbf_optax
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    >>> state = mbf_optax.mbf(0.01).init(params)
    >>> mbf_optax.check_state(mbf_optax.mbf(0.05), state, params)
    >>> shared = mbf_optax.mbf(0.01, partition=mbf_optax.flax_partition("shared"))
    >>> mbf_optax.check_state(shared, state, params)
    Traceback (most recent call last):
    ValueError: mbf_optax: the state's '0/curvature/Dense_0/kernel/statistics' is
    float32(10, 2) but should be float32(1, 4, 4). It was made with another partition,
    inverse_dtype, mu_dtype or chain, other parameters or another version of mbf_optax:
    restore it with those, or start anew from tx.init(params).
  """
  expected = jax.eval_shape(tx.init, params)
  checks.same_state(plain(state)[0], plain(expected)[0])
