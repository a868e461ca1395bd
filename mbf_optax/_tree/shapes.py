"""Shapes as annotations: ``Float[Array, "n *batch"]`` is an array of real numbers.

The letters are the paper's: ``n`` elements of a mini-block, ``t = n (n + 1) / 2``
entries of a packed triangle, ``m`` blocks of a layer that share a matrix, ``*batch``
the axes that count blocks, ``*stack`` those that stack independent layers. A name
stands for the same size throughout a call; ``#`` marks what may broadcast, ``...`` is
any shape. The notation is jaxtyping's, which checks every call in the tests. Users
neither need nor load it.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
  from jaxtyping import Array, Bool, Float, Inexact, Int
else:
  from jax import Array

  class _ArrayType:
    """What a shaped annotation is where nothing reads its shape: the array's type.

    The library imports jax and optax alone, and annotations are evaluated when a module
    is imported, so something has to answer to the names.
    """

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
      return item[0]

  Bool = Float = Inexact = Int = _ArrayType

__all__ = ["Array", "Bool", "Float", "Inexact", "Int"]
