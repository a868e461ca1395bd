"""Mini-Block Fisher in float64 NumPy: the oracle that tests compare the library with.

Written from the method's description alone: explicit matrices, literal inverses and
loops over the mini-blocks. It shares no code with the library; it is plain, not fast.

With k the number of steps taken before this one, and g the gradient, a step is

    m   <- momentum * m + g
    G_b <- beta * G_b + (1 - beta) * g_b g_b^T       for every block b, if k % T1 == 0
    P_b <- (G_b / c + lambda * I)^(-1)               for every block b, if k % T2 == 0
    d_b  = P_b m_b

where c = 1 - beta^(updates so far) from a zero start and c = 1 after a warm start.

References:
  Bahamou, Goldfarb and Ren, "A Mini-Block Fisher Method for Deep Neural
  Networks", 2023.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Schedule = float | Callable[[int], float]

# How many trailing kernel axes count blocks; the axes before them make up a block.
BLOCK_AXES = {"conv": 2, "dense": 1, "attention_in": 2, "attention_out": 1}
RELATIVE_DAMPING_FLOOR = 1e-30
RMS_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class Layer:
  """How one layer's arrays are read as mini-blocks.

  Attributes:
    kind: One of the following. A bias is the last element of its block, save in 'conv'.
      'conv': kernel (*spatial, in, out), a block per (in, out); bias elementwise.
      'dense': kernel (*inputs, out), a block per output; bias (out,).
      'attention_in': kernel (d, heads, head_dim), a block per (head, head_dim).
      'attention_out': kernel (heads, head_dim, d), a block per output; bias (d,).
      'elementwise': a leaf of any shape, each element divided by its root mean square.
    kernel: The kernel's name; for 'elementwise', the leaf's.
    bias: The bias's name, or None; beside an 'elementwise' leaf another such leaf.
    estimator: 'full', 'shared' or, for all kinds but 'conv', 'low_rank' or 'both' (for
      `tests.reference_adam` alone).
    rank: How many gradients 'low_rank' keeps.
    stacked: Whether a leading axis holds independent layers of this reading.
  """

  kind: str
  kernel: str
  bias: str | None = None
  estimator: str = "full"
  rank: int = 16
  stacked: bool = False

  def __post_init__(self):
    estimators = ("full", "shared", "low_rank", "both")
    estimators = estimators[: 2 if self.kind == "conv" else 4]
    if (
      self.kind not in (*BLOCK_AXES, "elementwise") or self.estimator not in estimators
    ):
      raise ValueError(f"no such reading: {self}")


@dataclasses.dataclass(frozen=True)
class _Part:
  """Blocks with statistics and damping in common: a layer, or a convolution's bias.

  Each index of a stack is a part of its own.
  """

  names: tuple[
    str, ...
  ]  # The kernel and the bias joined to its blocks, or one lone leaf.
  block_axes: int | None  # None: every element is a block.
  estimator: str  # A layer's, or 'inverse' or 'rms' for one-element blocks.
  rank: int
  index: int | None  # The position on the stack.

  def read(self, arrays: Arrays) -> np.ndarray:
    """Returns a matrix (blocks, length)."""
    kernel, *bias = (self._select(arrays[name]) for name in self.names)
    axes = kernel.ndim if self.block_axes is None else self.block_axes
    blocks = math.prod(kernel.shape[kernel.ndim - axes :])
    rows = [kernel.reshape(-1, blocks)] + [leaf.reshape(1, blocks) for leaf in bias]
    return np.concatenate(rows).T

  def write(self, matrix: np.ndarray, arrays: Arrays) -> None:
    """Stores a matrix (blocks, length) in the arrays: the inverse of `read`."""
    kernel, *bias = (self._select(arrays[name]) for name in self.names)
    columns = matrix.T
    for leaf in bias:
      leaf[...] = columns[-1].reshape(leaf.shape)
      columns = columns[:-1]
    kernel[...] = columns.reshape(kernel.shape)

  def _select(self, array: np.ndarray) -> np.ndarray:
    return array[...] if self.index is None else array[self.index, ...]


def parts(layers: Sequence[Layer], arrays: Arrays) -> list[_Part]:
  """Splits the layers into parts; every array must be read exactly once."""
  parts = []
  for layer in layers:
    for index in range(len(arrays[layer.kernel])) if layer.stacked else [None]:
      kernel, bias = (layer.kernel,), (layer.bias,) if layer.bias else ()
      if layer.kind == "elementwise":
        parts.extend(_Part((name,), None, "rms", 0, index) for name in kernel + bias)
      elif layer.kind == "conv":
        parts.append(_Part(kernel, 2, layer.estimator, 0, index))
        parts.extend(_Part((name,), None, "inverse", 0, index) for name in bias)
      else:
        axes = BLOCK_AXES[layer.kind]
        parts.append(_Part(kernel + bias, axes, layer.estimator, layer.rank, index))
  read = [name for layer in layers for name in (layer.kernel, layer.bias) if name]
  if sorted(read) != sorted(arrays):
    raise ValueError(f"the layers read {sorted(read)}, the arrays are {sorted(arrays)}")
  return parts


def float64(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Copies the arrays to float64."""
  return {name: np.array(array, np.float64) for name, array in arrays.items()}


def value(schedule: Schedule, k: int) -> float:
  """Returns a hyperparameter at step k."""
  return float(schedule(k) if callable(schedule) else schedule)


def _lambda(mbf: "MbfReference", diagonals: Sequence[np.ndarray], k: int) -> float:
  """Returns a part's damping, given the diagonals of its corrected statistics."""
  damping = value(mbf.damping, k)
  if mbf.relative_damping:
    return damping * float(np.mean(diagonals)) + RELATIVE_DAMPING_FLOOR
  return damping


def _inverses(
  mbf: "MbfReference", corrected: list[np.ndarray], k: int
) -> list[np.ndarray]:
  """Returns (G_b + lambda I)^(-1) for every corrected statistic G_b of a part."""
  damping = _lambda(mbf, [np.diag(g) for g in corrected], k)
  return [np.linalg.inv(g + damping * np.eye(len(g))) for g in corrected]


class _Blocks:
  """The estimators 'full' (a matrix per block) and 'shared' (their mean, for all)."""

  def __init__(self, part: _Part, mbf: "MbfReference"):
    self.shared = part.estimator == "shared"
    self.mbf = mbf
    self.statistics: list[np.ndarray] | None = None
    self.updates = 0
    self.inverses: list[np.ndarray] = []

  def step(self, g: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    beta = self.mbf.curvature_ema
    if k % self.mbf.curvature_update_period == 0:
      new = self._outer_products(g)
      old = self.statistics or [0.0] * len(new)
      self.statistics = [
        beta * a + (1 - beta) * b for a, b in zip(old, new, strict=True)
      ]
      self.updates += 1
    if k % self.mbf.inverse_update_period == 0:
      self._refresh(k)
    inverses = self.inverses * len(m) if self.shared else self.inverses
    return np.array([p @ row for p, row in zip(inverses, m, strict=True)])

  def warm_start(self, gs: list[np.ndarray], k: int) -> None:
    products = [self._outer_products(g) for g in gs]
    self.statistics = [sum(block) / len(gs) for block in zip(*products, strict=True)]
    self._refresh(k)

  def _outer_products(self, g: np.ndarray) -> list[np.ndarray]:
    products = [np.outer(row, row) for row in g]
    return [sum(products) / len(products)] if self.shared else products

  def _refresh(self, k: int) -> None:
    c = 1.0 if self.mbf.warm else 1 - self.mbf.curvature_ema**self.updates
    self.inverses = _inverses(self.mbf, [g / c for g in self.statistics], k)


class _LowRank:
  """The estimator 'low_rank': a full matrix per block, of the last `rank` gradients.

  The inverse is renewed whenever the statistics are.
  """

  def __init__(self, part: _Part, mbf: "MbfReference"):
    self.rank = part.rank
    self.mbf = mbf
    self.kept: list[
      tuple[float, np.ndarray]
    ] = []  # Raw weight and gradient, oldest first.
    self.inverses: list[np.ndarray] = []

  def step(self, g: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    beta = self.mbf.curvature_ema
    if k % self.mbf.curvature_update_period == 0:
      aged = [(beta * weight, old) for weight, old in self.kept]
      self.kept = [*aged, (1 - beta, g)][-self.rank :]
      self._refresh(k)
    return np.array([p @ row for p, row in zip(self.inverses, m, strict=True)])

  def warm_start(self, gs: list[np.ndarray], k: int) -> None:
    last = gs[-self.rank :]
    self.kept = [(1 / len(last), g) for g in last]
    self._refresh(k)

  def _refresh(self, k: int) -> None:
    total = sum(weight for weight, _ in self.kept)
    statistics = [
      sum(weight / total * np.outer(g[j], g[j]) for weight, g in self.kept)
      for j in range(len(self.kept[0][1]))
    ]
    self.inverses = _inverses(self.mbf, statistics, k)


class _Elementwise:
  """The estimators 'inverse' and 'rms': one-element blocks, renewed at every step."""

  def __init__(self, part: _Part, mbf: "MbfReference"):
    self.rms = part.estimator == "rms"
    self.mbf = mbf
    self.statistic: np.ndarray | float = 0.0

  def step(self, g: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    beta = self.mbf.curvature_ema
    self.statistic = beta * self.statistic + (1 - beta) * g**2
    corrected = self.statistic / (1.0 if self.mbf.warm else 1 - beta ** (k + 1))
    if self.rms:
      return m / (np.sqrt(corrected) + RMS_EPSILON)
    return m / (corrected + _lambda(self.mbf, corrected, k))

  def warm_start(self, gs: list[np.ndarray], k: int) -> None:
    del k  # Nothing to renew before the next step.
    self.statistic = sum(g**2 for g in gs) / len(gs)


@dataclasses.dataclass
class MbfReference:
  """The Mini-Block Fisher direction, before the learning rate.

  Attributes:
    layers: How the gradients' arrays are read, each array exactly once.
    damping: lambda, or a function of the step.
    relative_damping: Whether `damping` multiplies a part's mean diagonal of statistics.
    momentum: The decay of the heavy ball.
    curvature_ema: beta, the decay of the statistics.
    curvature_update_period: T1, the steps from one update of the matrices to the next.
    inverse_update_period: T2, the steps from one inverse to the next.
    count: k, the number of steps taken.
    warm: Whether a warm start replaced the zero start.
    trace: m, the heavy ball.
  """

  layers: Sequence[Layer]
  _: dataclasses.KW_ONLY
  damping: Schedule = 3e-3
  relative_damping: bool = False
  momentum: float = 0.9
  curvature_ema: float = 0.9
  curvature_update_period: int = 10
  inverse_update_period: int = 100
  count: int = dataclasses.field(default=0, init=False)
  warm: bool = dataclasses.field(default=False, init=False)
  trace: Arrays = dataclasses.field(default_factory=dict, init=False)

  def __post_init__(self):
    self._estimators = []  # A part and what estimates its curvature, for each part.

  def update(self, grads: Arrays, curvature_grads: Arrays | None = None) -> Arrays:
    """Takes one step and returns the direction.

    Args:
      grads: The gradient, which enters the momentum.
      curvature_grads: What enters the statistics instead of `grads`, if given.
    """
    grads = float64(grads)
    curvature = grads if curvature_grads is None else float64(curvature_grads)
    self._init(grads)
    for name, g in grads.items():
      self.trace[name] = self.momentum * self.trace[name] + g
    directions = {name: np.zeros_like(g) for name, g in grads.items()}
    for part, estimator in self._estimators:
      d = estimator.step(part.read(curvature), part.read(self.trace), self.count)
      part.write(d, directions)
    self.count += 1
    return directions

  def warm_start(self, gradients: Iterable[Arrays]) -> None:
    """Replaces the statistics by means over the gradients and renews the inverses."""
    gradients = [float64(grads) for grads in gradients]
    self._init(gradients[0])
    self.warm = True
    for part, estimator in self._estimators:
      estimator.warm_start([part.read(grads) for grads in gradients], self.count)

  def _init(self, grads: Arrays) -> None:
    if not self._estimators:
      self.trace = {name: np.zeros_like(g) for name, g in grads.items()}
      for part in parts(self.layers, grads):
        kinds = {"full": _Blocks, "shared": _Blocks, "low_rank": _LowRank}
        kinds |= {"inverse": _Elementwise, "rms": _Elementwise}
        estimator = kinds[part.estimator](part, self)
        self._estimators.append((part, estimator))


def trajectory(
  params: Arrays,
  gradient_fn: Callable[[Arrays, int], Arrays],
  optimizer: Any,
  steps: int,
  learning_rate: Schedule,
  weight_decay: float = 0.0,
  curvature_gradient_fn: Callable[[Arrays, int], Arrays] | None = None,
) -> list[Arrays]:
  """Trains by W <- W - eta * (d + gamma * W).

  Args:
    params: The initial parameters, which are left as they are.
    gradient_fn: Maps the parameters and the step k = 0, 1, ... to the gradient.
    optimizer: What gives the direction d.
    steps: The number of steps.
    learning_rate: eta, or a function of the step.
    weight_decay: gamma.
    curvature_gradient_fn: Like `gradient_fn`, for the statistics' own gradient, if any.

  Returns:
    The parameters after each step, `steps` of them.
  """
  params = float64(params)
  visited = []
  for k in range(steps):
    curvature = curvature_gradient_fn and curvature_gradient_fn(params, k)
    directions = optimizer.update(gradient_fn(params, k), curvature)
    eta = value(learning_rate, k)
    params = {
      name: w - eta * (directions[name] + weight_decay * w)
      for name, w in params.items()
    }
    visited.append(params)
  return visited
