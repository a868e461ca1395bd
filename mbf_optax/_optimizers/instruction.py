"""What ``warm_start`` tells an update to do."""

from typing import NamedTuple

import jax


class WarmStart(NamedTuple):
  """Passed to ``update`` by :func:`warm_start`: update only the statistics.

  Attributes:
    average: ``None`` to refresh the inverses, else the weight that the statistics keep
      while the given gradients enter.
  """

  average: jax.Array | None
