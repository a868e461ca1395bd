"""The idealized method of Theorem 1: exact gradients and exact Fisher blocks.

One output ``u`` for each of ``n`` examples, the loss ``|u - y|^2 / 2``, the whole data
at every step, and for each mini-block ``b`` with Jacobian ``J_b`` (``n`` rows)

    W_b <- W_b - eta (J_b^T J_b + lambda I)^(-1) J_b^T (u - y)
         = W_b - eta J_b^T (J_b J_b^T + lambda I)^(-1) (u - y)

whose second form needs the ``n x n`` Gram matrices alone. The theorem assumes that all
Gram matrices are positive definite at the start, with smallest eigenvalue ``lambda_0``,
and that the Jacobian moves by at most ``C sqrt(lambda_0) / 3``, ``C <= 1/2``, within
the radius ``3 |u - y| / sqrt(lambda_0)``; both are measured.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, dict[str, jax.Array]]
CONVERGED, DIVERGED = 1e-16, 1e12  # of the first loss; below it float64 rounds
ROUNDING = 1e-13  # a Gram matrix with a smaller ratio of eigenvalues is singular


@dataclasses.dataclass(frozen=True)
class Network:
  """Dense layers of which the last has one neuron with weights ``+-1 / sqrt(fan_in)``.

  Attributes:
    widths: neurons of the hidden layers.
    activation: of the hidden layers.
    scale: factor of the output. Larger ones bring the network closer to its
      linearisation, since smaller changes of the weights then suffice.
  """

  widths: tuple[int, ...]
  activation: Callable[[jax.Array], jax.Array] = jax.nn.softplus
  scale: float = 1.0

  def init(self, key: jax.Array, inputs: int) -> Params:
    """Random parameters in Flax's layout."""
    params = {}
    for i, outputs in enumerate((*self.widths, 1)):
      draw = jax.random.normal if i < len(self.widths) else jax.random.rademacher
      kernel = draw(jax.random.fold_in(key, i), (inputs, outputs), jnp.float64)
      bias = jnp.zeros(outputs, jnp.float64)
      params[f"Dense_{i}"] = {"kernel": kernel / inputs**0.5, "bias": bias}
      inputs = outputs
    return params

  def __call__(self, params: Params, x: jax.Array) -> jax.Array:
    for i in range(len(self.widths)):
      layer = params[f"Dense_{i}"]
      x = self.activation(x @ layer["kernel"] + layer["bias"][None])
    layer = params[f"Dense_{len(self.widths)}"]
    return self.scale * (x @ layer["kernel"] + layer["bias"][None])[:, 0]


class Case(NamedTuple):
  """A network, its data and a step.

  Attributes:
    name: what is special about it.
    network: the network.
    x: ``(n, inputs)``.
    y: ``(n,)``.
    step: learning rate in units of one over the number of mini-blocks, where the
      linearised network would arrive in a single step.
    damping: in units of the smallest eigenvalue of all Gram matrices, or, where that is
      zero, of ``1e-3`` of their mean one.
  """

  name: str
  network: Network
  x: np.ndarray
  y: np.ndarray
  step: float = 0.5
  damping: float = 0.1


class Outcome(NamedTuple):
  """What was measured.

  Attributes:
    examples: n.
    blocks: number of mini-blocks.
    learning_rate: eta.
    smallest: ``lambda_0``.
    mean: mean eigenvalue of the Gram matrices.
    damping: lambda.
    constant: ``C`` needed on the path, ``3 max |J - J_0| / sqrt(lambda_0)``.
    ball_constant: ``C`` needed at the worst points of the assumption's ball that an
      ascent from random ones finds.
    travelled: largest distance from the start, in units of the ball's radius.
    losses: relative to the first one.
  """

  examples: int
  blocks: int
  learning_rate: float
  smallest: float
  mean: float
  damping: float
  constant: float
  ball_constant: float
  travelled: float
  losses: np.ndarray

  @property
  def excess(self) -> float:
    """Largest ratio of the loss to the theorem's bound after the first step."""
    k = np.arange(len(self.losses))
    relevant = (k > 0) & ~(self.losses < CONVERGED)
    ratios = self.losses / (1 - self.learning_rate) ** k
    return float(np.max(ratios[relevant], initial=0.0))

  @property
  def removed(self) -> float:
    """Fraction of the loss that a step removes, on average until convergence."""
    steps = int(np.argmax(self.losses < CONVERGED)) or len(self.losses) - 1
    return float(1 - self.losses[steps] ** (1 / steps))


def jacobians(
  function: Callable[[Params], jax.Array], params: Params
) -> list[jax.Array]:
  """Mini-block Jacobians ``(blocks, n, block size)``, one array for each layer."""
  layers = jax.jacrev(function)(params).values()
  return [jax.vmap(_columns)(layer).transpose(2, 0, 1) for layer in layers]


def _columns(layer: dict[str, jax.Array]) -> jax.Array:
  """``(inputs + 1, outputs)``: the weights of each neuron with its bias."""
  return jnp.concatenate([layer["kernel"], layer["bias"][None]])


def grams(blocks: list[jax.Array]) -> jax.Array:
  """Gram matrices ``(blocks of all layers, n, n)``."""
  return jnp.concatenate([block @ block.mT for block in blocks])


def direction(
  function: Callable[[Params], jax.Array],
  params: Params,
  residual: jax.Array,
  damping: jax.typing.ArrayLike,
) -> Params:
  """``(F_MB + lambda I)^(-1) J^T (u - y)``."""
  blocks = jacobians(function, params)
  gram = grams(blocks)
  eye = jnp.eye(len(residual), dtype=residual.dtype)
  residuals = jnp.broadcast_to(residual[:, None], (len(gram), len(residual), 1))
  solved = jnp.linalg.solve(gram + damping * eye[None], residuals)
  step = {}
  for name, block in zip(params, blocks, strict=True):
    part, solved = solved[: len(block)], solved[len(block) :]
    columns = (block.mT @ part)[..., 0].T
    step[name] = {"kernel": columns[:-1], "bias": columns[-1]}
  return step


@functools.partial(jax.jit, static_argnames="network")
def _spectrum(network: Network, params: Params, x: jax.Array) -> jax.Array:
  """``(blocks, n)``: eigenvalues of the Gram matrices."""
  return jnp.linalg.eigvalsh(grams(jacobians(lambda p: network(p, x), params)))


@functools.partial(jax.jit, static_argnames="network")
def _moved(network: Network, params: Params, start: Params, x: jax.Array) -> jax.Array:
  """Spectral norm of the change of the whole Jacobian."""
  ends = [jacobians(lambda p: network(p, x), at) for at in (params, start)]
  change = grams([new - old for new, old in zip(*ends, strict=True)]).sum(0)
  return jnp.sqrt(jnp.linalg.eigvalsh(change)[-1])


@functools.partial(jax.jit, static_argnames="network")
def _advance(
  network: Network,
  params: Params,
  start: Params,
  x: jax.Array,
  y: jax.Array,
  rate: float,
  damping: float,
) -> tuple[Params, jax.Array, jax.Array]:
  """One step; the squared residual after it, and the distance from the start."""

  def residual(params: Params) -> jax.Array:
    """The output is taken to be zero at the start, whatever its scale."""
    return network(params, x) - network(start, x) - y

  step = direction(residual, params, residual(params), damping)
  params = jax.tree.map(lambda p, d: p - rate * d, params, step)
  return params, jnp.sum(residual(params) ** 2), distance(params, start)


@functools.partial(jax.jit, static_argnames="network")
def _uphill(
  network: Network, params: Params, start: Params, x: jax.Array, radius: float
) -> tuple[Params, jax.Array]:
  """Where on the sphere the change's gradient points, and the change before that.

  Close to a linearisation the change is a norm of a linear map, and this the power
  iteration that finds its largest singular value.
  """
  change, slope = jax.value_and_grad(lambda params: _moved(network, params, start, x))(
    params
  )
  return _at_radius(start, slope, radius), change


def worst_change(
  network: Network,
  start: Params,
  x: jax.Array,
  radius: float,
  key: jax.Array,
  rounds: int = 30,
) -> float:
  """Largest change of the Jacobian on the way uphill from a random point of a sphere.

  Args:
    network: the network.
    start: parameters at the sphere's centre.
    x: ``(n, inputs)``.
    radius: of the sphere.
    key: of the first point.
    rounds: points that are visited.

  Returns:
    A spectral norm; what the ball needs is at least that.
  """
  leaves, structure = jax.tree.flatten(start)
  keys = jax.random.split(key, len(leaves))
  noise = [
    jax.random.normal(k, leaf.shape, leaf.dtype)
    for k, leaf in zip(keys, leaves, strict=True)
  ]
  params = _at_radius(start, jax.tree.unflatten(structure, noise), radius)
  changes = []
  for _ in range(rounds):
    params, change = _uphill(network, params, start, x, radius)
    changes.append(float(change))
  return float(np.nanmax(changes))  # where nothing changes, no direction is uphill


def measure(case: Case, steps: int, seed: int = 0, points: int = 8) -> Outcome:
  """Runs the idealized method in float64 and measures the assumptions."""
  network = case.network
  x, y = jnp.asarray(case.x, jnp.float64), jnp.asarray(case.y, jnp.float64)
  start = network.init(jax.random.key(seed), x.shape[1])
  eigenvalues = np.asarray(_spectrum(network, start, x))
  mean = float(eigenvalues.mean())
  positive = np.all(eigenvalues[:, 0] > ROUNDING * eigenvalues[:, -1])
  smallest = float(eigenvalues.min()) if positive else 0.0
  rate = case.step / len(eigenvalues)
  damping = case.damping * (smallest or 1e-3 * mean)

  first = float(jnp.sum(y**2))
  params, losses, distances, changes = start, [first], [0.0], [0.0]
  for step in range(steps):
    params, loss, length = _advance(network, params, start, x, y, rate, damping)
    losses.append(float(loss))
    distances.append(float(length))
    if step % 10 == 0:
      changes.append(float(_moved(network, params, start, x)))
    if not CONVERGED < losses[-1] / first < DIVERGED:
      break
  root = smallest**0.5 or np.nan
  radius = 3 * first**0.5 / root
  keys = jax.random.split(jax.random.key(seed + 1), points if smallest else 0)
  ball = [worst_change(network, start, x, radius, key) for key in keys]
  return Outcome(
    examples=len(y),
    blocks=len(eigenvalues),
    learning_rate=rate,
    smallest=smallest,
    mean=mean,
    damping=damping,
    constant=3 * max(changes) / root,
    ball_constant=3 * max(ball, default=np.nan) / root,
    travelled=max(distances) / radius,
    losses=np.array(losses) / first,
  )


def distance(params: Params, start: Params) -> jax.Array:
  """Euclidean distance of two sets of parameters."""
  return jnp.sqrt(
    sum(
      jnp.sum((a - b) ** 2)
      for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)
    )
  )


def _at_radius(start: Params, direction: Params, radius: float) -> Params:
  """The point of a sphere around ``start`` that lies in a direction."""
  zero = jax.tree.map(jnp.zeros_like, direction)
  factor = radius / distance(direction, zero)
  return jax.tree.map(lambda p, d: p + factor * d, start, direction)
