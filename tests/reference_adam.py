"""Adam with a matrix for every mini-block, in float64 NumPy: the oracle of `mbf_adam`.

Written from the method's description alone, with loops over the mini-blocks and powers
by eigendecomposition. It shares no code with the library; it is plain, not fast.

With t = 1, 2, ... the step, and g the gradient, a step is

    m <- b1 m + (1 - b1) g         v <- b2 v + (1 - b2) g^2       element by element
    m^ = m / (1 - b1^t)            v^ = v / (1 - b2^t)            m^ or Nesterov's form
    a  = m^ / (sqrt(v^ + eps_root) + eps)                         Adam's update

and for every layer, which is a kernel with the bias joined to its blocks,

    r     = <g, m^_(t-1)> / max(|g|^2, |m^_(t-1)|^2)              m^ plain in any case
    kappa = clip(average of r with memory 0.9, corrected, 0, 1)   1 at t = 1
    p     = exponent * (1 - sqrt(kappa))

and for every matrix, made of the same n elements of each of K blocks,

    G <- beta G + (1 - beta) mean_K g_b g_b^T                     if (t - 1) % T1 == 0
    c = 1 - beta^(updates so far)
    N = K (1 + beta) c / ((1 - beta) (2 - c))
    alpha = n / (n + N)            tau = trace(G / c) / n + 1e-30
    D = diag(G) / (c tau)          u = (sum sqrt((1 - alpha) D + alpha) / n)^2
    s = clip((0.4 - u) / 0.2, 0, 1) / 2                           0 without gradients
    F = diag((D + 1e-8)^(-s / 2))
    R <- F ((1 - alpha) G / (c tau) + (alpha + lambda) I)^(-p) F  on refreshes
    d_b = R m^_b
    update_b = d_b |a_b| / |d_b|                                  over those n elements

A refresh is due if (t - 1) % T2 == 0, and at t = 1, 2, 4, 8, ... below T2.

The estimators: 'full' has a matrix for every block (K = 1); 'shared' has one for all
blocks, or, if they are longer than `block_limit`, one for every piece of them; 'both'
has those and the same of the transposed layer, whose blocks are the inputs, with the
exponent output_exponent * (1 - sqrt(kappa)): d = R m^ S, and the length is the layer's.
What is read element by element moves by a.

References:
  Bahamou, Goldfarb and Ren, "A Mini-Block Fisher Method for Deep Neural
  Networks", 2023.
  Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tests.reference import Arrays, Layer, Schedule, float64, parts, value

ELEMENTWISE = ("inverse", "rms")  # How `parts` names what is read element by element.
MEAN_DIAGONAL_FLOOR = 1e-30


def pieces(length: int, limit: int | None) -> list[slice]:
  """Cuts a vector into the fewest pieces within the limit; the last may be shorter."""
  count = 1 if limit is None else math.ceil(length / limit)
  size = math.ceil(length / count)
  return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def evidence(beta: float, updates: int) -> float:
  """Returns how many gradients a corrected moving average is worth."""
  c = 1 - beta**updates
  return (1 + beta) * c / ((1 - beta) * (2 - c))


def shrunk_power(
  matrix: np.ndarray, gradients: float, damping: float, exponent: float
) -> np.ndarray:
  """Returns the damped, shrunk and scaled matrix to the power of minus the exponent."""
  n = len(matrix)
  alpha = n / (n + gradients)
  tau = np.trace(matrix) / n + MEAN_DIAGONAL_FLOOR
  shrunk = (1 - alpha) * matrix / tau + alpha * np.eye(n)
  eigenvalues, vectors = np.linalg.eigh(shrunk + damping * np.eye(n))
  return vectors @ np.diag(eigenvalues**-exponent) @ vectors.T


def row_scales(matrix: np.ndarray, gradients: float) -> np.ndarray:
  """Returns the factors of rows whose scales differ by orders of magnitude."""
  n, diagonal = len(matrix), np.diag(matrix)
  if not np.any(diagonal > 0):
    return np.ones(n)
  relative = diagonal / (np.mean(diagonal) + MEAN_DIAGONAL_FLOOR)
  alpha = n / (n + gradients)
  evenness = np.mean(np.sqrt((1 - alpha) * relative + alpha)) ** 2
  s = min(max((0.4 - evenness) / 0.2, 0.0), 1.0) / 2
  return (relative + 1e-8) ** (-s / 2)


class Persistence:
  """How much of a layer's gradient the momentum before it foretold."""

  def __init__(self, memory: float):
    self.memory = memory
    self.total = 0.0
    self.count = 0  # Of the gradients that had a momentum before them.
    self.kappa = 1.0

  def observe(self, g: np.ndarray, before: np.ndarray) -> None:
    """Takes the gradient and the corrected momentum that did not know it."""
    largest = max(np.sum(g**2), np.sum(before**2))
    r = np.sum(g * before) / largest if largest > 0 else 0.0
    self.total = self.memory * self.total + (1 - self.memory) * r
    self.count += 1
    mean = float(self.total) / (1 - self.memory**self.count)
    self.kappa = min(max(mean, 0.0), 1.0)


class _Matrix:
  """One matrix G and its power R, of some elements of some blocks of a layer."""

  def __init__(self, blocks: range, elements: slice):
    self.blocks = blocks
    self.elements = elements
    self.statistic: np.ndarray | float = 0.0

  def observe(self, g: np.ndarray, beta: float) -> None:
    rows = [g[b, self.elements] for b in self.blocks]
    mean = sum(np.outer(row, row) for row in rows) / len(rows)
    self.statistic = beta * self.statistic + (1 - beta) * mean

  def refresh(self, beta: float, updates: int, damping: float, exponent: float) -> None:
    corrected = self.statistic / (1 - beta**updates)
    gradients = len(self.blocks) * evidence(beta, updates)
    scales = row_scales(corrected, gradients)
    power = shrunk_power(corrected, gradients, damping, exponent)
    self.power = scales[:, None] * power * scales

  def apply(self, m: np.ndarray) -> None:
    """Multiplies its elements of its blocks by R, in place."""
    for b in self.blocks:
      m[b, self.elements] = self.power @ m[b, self.elements]


def _move_as_far(d: np.ndarray, a: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(d)
  return d * (np.linalg.norm(a) / length) if length > 0 else d


class _LayerReference:
  """The matrices and the persistence of one layer, or of one index of a stack."""

  def __init__(
    self,
    estimator: str,
    shape: tuple[int, int],
    adam: "MbfAdamReference",
    biased: bool = False,
  ):
    blocks, length = shape
    self.adam = adam
    self.both = estimator == "both"
    self.persistence = Persistence(adam.memory)
    self.updates = 0
    self.exponents = (0.0, 0.0)  # Of the inputs' and of the outputs' matrices.
    limit = adam.block_limit
    if estimator == "full":
      self.inputs = [_Matrix(range(b, b + 1), slice(0, length)) for b in range(blocks)]
    elif estimator in ("shared", "both"):
      *cuts, last = pieces(length - biased, limit)
      last = slice(last.start, last.stop + biased)  # The bias comes with the last.
      self.inputs = [_Matrix(range(blocks), piece) for piece in [*cuts, last]]
    else:
      raise ValueError(f"mbf_adam has no estimator {estimator!r}")
    # Of the transposed layer, whose blocks are the inputs.
    cuts = pieces(blocks, limit) if self.both else []
    self.outputs = [_Matrix(range(length), piece) for piece in cuts]

  def observe(self, g: np.ndarray) -> None:
    for matrix in self.inputs:
      matrix.observe(g, self.adam.curvature_ema)
    for matrix in self.outputs:
      matrix.observe(g.T, self.adam.curvature_ema)
    self.updates += 1

  def refresh(self) -> None:
    adam, k = self.adam, self.adam.count
    fade = 1 - math.sqrt(self.persistence.kappa)
    p = value(adam.exponent, k) * fade
    q = value(adam.output_exponent, k) * fade if self.both else 0.0
    self.exponents = (p, q)
    for matrices, exponent in ((self.inputs, p), (self.outputs, q)):
      for matrix in matrices:
        damping = value(adam.damping, k)
        matrix.refresh(adam.curvature_ema, self.updates, damping, exponent)

  def direction(self, m: np.ndarray, a: np.ndarray) -> np.ndarray:
    d = m.copy()
    for matrix in self.inputs:
      matrix.apply(d)
    for matrix in self.outputs:
      matrix.apply(d.T)  # A view: d itself changes.
    if self.both:
      return _move_as_far(d, a)
    for matrix in self.inputs:
      for b in matrix.blocks:
        own = (b, matrix.elements)
        d[own] = _move_as_far(d[own], a[own])
    return d


@dataclasses.dataclass
class MbfAdamReference:
  """The update of `mbf_adam`, before the learning rate and the decay.

  Attributes:
    layers: How the gradients' arrays are read, each array exactly once, with the
      estimators 'full', 'shared' and 'both'.
    b1: The decay of the first moment.
    b2: The decay of the second moment.
    eps: What is added to the root of the second moment.
    eps_root: What is added to the second moment under the root.
    nesterov: Whether Adam and the matrices take the momentum's Nesterov form.
    damping: lambda, or a function of k = t - 1, as the two exponents may be.
    exponent: The exponent of the inputs' matrices where nothing persists.
    output_exponent: The exponent of the outputs' matrices there.
    curvature_ema: beta, the decay of the statistics.
    curvature_update_period: T1, the steps from one update of the matrices to the next.
    inverse_update_period: T2, the steps from one refresh to the next.
    block_limit: The longest piece of a 'shared' or 'both' matrix, or None.
    memory: The decay of the persistence's average.
    count: The number of steps taken.
    persistence: kappa now, by the kernel's name, for every index of its stack.
    exponents: Likewise p and, for 'both', q of the latest refresh.
  """

  layers: Sequence[Layer]
  _: dataclasses.KW_ONLY
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  eps_root: float = 0.0
  nesterov: bool = False
  damping: Schedule = 0.1
  exponent: Schedule = 0.75
  output_exponent: Schedule = 0.25
  curvature_ema: float = 0.99
  curvature_update_period: int = 1
  inverse_update_period: int = 10
  block_limit: int | None = None
  memory: float = 0.9
  count: int = dataclasses.field(default=0, init=False)
  persistence: dict[str, list[float]] = dataclasses.field(init=False)
  exponents: dict[str, list[tuple[float, float]]] = dataclasses.field(init=False)

  def __post_init__(self):
    self._m: Arrays = {}
    self._v: Arrays = {}
    self._parts = []  # A part and its matrices, or None where it has none.

  def update(self, grads: Arrays, curvature_grads: Arrays | None = None) -> Arrays:
    """Takes one step and returns the update.

    Args:
      grads: The gradient, which enters the moments and the persistence.
      curvature_grads: What enters the matrices instead of `grads`, if given.
    """
    grads = float64(grads)
    curvature = grads if curvature_grads is None else float64(curvature_grads)
    self._init(grads)
    before = self._corrected_momentum()
    for name, g in grads.items():
      self._m[name] = self.b1 * self._m[name] + (1 - self.b1) * g
      self._v[name] = self.b2 * self._v[name] + (1 - self.b2) * g**2
    numerator, adam = self._adam(grads)
    updates = {name: np.zeros_like(g) for name, g in grads.items()}
    for part, layer in self._parts:
      update = part.read(adam)
      if layer is not None:
        if before is not None:
          layer.persistence.observe(part.read(grads), part.read(before))
        if self.count % self.curvature_update_period == 0:
          layer.observe(part.read(curvature))
        if self._due():
          layer.refresh()
        update = layer.direction(part.read(numerator), update)
      part.write(update, updates)
    self.count += 1
    self._report()
    return updates

  def _init(self, grads: Arrays) -> None:
    if self._parts:
      return
    self._m = {name: np.zeros_like(g) for name, g in grads.items()}
    self._v = {name: np.zeros_like(g) for name, g in grads.items()}
    for part in parts(self.layers, grads):
      layer = None
      if part.estimator not in ELEMENTWISE:
        shape, biased = part.read(grads).shape, len(part.names) > 1
        layer = _LayerReference(part.estimator, shape, self, biased)
      self._parts.append((part, layer))

  def _corrected_momentum(self) -> Arrays | None:
    if self.count == 0:
      return None
    return {name: m / (1 - self.b1**self.count) for name, m in self._m.items()}

  def _adam(self, grads: Arrays) -> tuple[Arrays, Arrays]:
    """Returns what Adam divides, and Adam's update."""
    t = self.count + 1
    numerator, update = {}, {}
    for name, g in grads.items():
      m_hat = self._m[name] / (1 - self.b1**t)
      if self.nesterov:
        ahead = self._m[name] / (1 - self.b1 ** (t + 1))
        m_hat = self.b1 * ahead + (1 - self.b1) * g / (1 - self.b1**t)
      v_hat = self._v[name] / (1 - self.b2**t)
      numerator[name] = m_hat
      update[name] = m_hat / (np.sqrt(v_hat + self.eps_root) + self.eps)
    return numerator, update

  def _due(self) -> bool:
    t = self.count + 1
    early = t < self.inverse_update_period and math.log2(t).is_integer()
    return early or (t - 1) % self.inverse_update_period == 0

  def _report(self) -> None:
    self.persistence, self.exponents = {}, {}
    for part, layer in self._parts:
      if layer is not None:
        name = part.names[0]
        self.persistence.setdefault(name, []).append(layer.persistence.kappa)
        self.exponents.setdefault(name, []).append(layer.exponents)
