"""Equinox models by the types of their modules.

Equinox itself is not imported: its classes are known by their names and the package
that defines them, so that subclasses are read as what they derive from.
"""

import dataclasses
import functools
from typing import Any

import jax

from mbf_optax._partition.channels_first import channels_first_geometry
from mbf_optax._partition.conventions import Geometry, Kind, Named
from mbf_optax._partition.parameters import Parameters, module_of
from mbf_optax._tree import paths

# The number of axes that a module's weight has beside stacked ones; convolutions have
# two more than they have spatial axes.
_RANKS = {"Linear": 2, "GRUCell": 2, "LSTMCell": 2, "Conv": None, "ConvTranspose": None}
_ELEMENTWISE = {"Embedding", "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "PReLU"}


@dataclasses.dataclass(frozen=True)
class EquinoxTypes(Named):
  """Weights of Equinox modules whose types are known.

  Attributes:
    ranks: pairs of a module's path and the rank of its weights, ``0`` for norms and
      embeddings.
  """

  weights: tuple[str, ...] = ("weight", "weight_ih", "weight_hh")
  bias: str = "bias"
  ranks: tuple[tuple[str, int], ...] = ()

  @classmethod
  def of(cls, model: Any) -> "EquinoxTypes":
    """The modules of a model.

    Raises:
      TypeError: if there is no module of Equinox in it.
    """
    nodes, _ = jax.tree_util.tree_flatten_with_path(
      model, is_leaf=lambda node: _kind(node) is not None
    )
    found = [(paths.joined(keys), _rank(node)) for keys, node in nodes if _kind(node)]
    if not found:
      raise TypeError(
        f"mbf_optax: equinox_partition got a {type(model).__name__} for a model, in"
        " which no layer of equinox.nn is; give the eqx.Module itself, or nothing."
      )
    return cls(ranks=tuple(found))

  def reads(self, path: str, params: Parameters) -> bool:
    return super().reads(path, params) and module_of(path) in self._ranks

  def bias_of(self, path: str, params: Parameters) -> str | None:
    found = super().bias_of(path, params)
    return found if self._ranks.get(module_of(path)) else None

  def weight_of(self, path: str, params: Parameters) -> str | None:
    found = super().weight_of(path, params)
    return found if self._ranks.get(module_of(path)) else None

  def excludes(self, path: str, params: Parameters) -> bool:
    del params
    return self._ranks[module_of(path)] == 0

  def geometry(self, path: str, params: Parameters, kind: Kind | None) -> Geometry:
    ndim, rank = params[path].ndim, self._ranks[module_of(path)] or 2
    is_conv = kind == "conv" or (kind is None and rank > 2)
    return channels_first_geometry(ndim, max(0, ndim - rank), is_conv)

  @functools.cached_property
  def _ranks(self) -> dict[str, int]:
    return dict(self.ranks)


def _kind(node: Any) -> str | None:
  """The layer of ``equinox.nn`` that a module is or derives from."""
  for base in type(node).__mro__:
    is_known = base.__name__ in _RANKS or base.__name__ in _ELEMENTWISE
    if is_known and base.__module__.partition(".")[0] == "equinox":
      return base.__name__
  return None


def _rank(node: Any) -> int:
  kind = _kind(node)
  if kind in _ELEMENTWISE:
    return 0
  rank = _RANKS[kind or "Linear"]
  return node.num_spatial_dims + 2 if rank is None else rank
