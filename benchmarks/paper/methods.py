"""An optimizer, what it needs from a batch, and the settings to try it with."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

import mbf_optax
from benchmarks.paper.tasks import Batch, Task, Variables

Setting = dict[str, float]
Gradient = Callable[
  [Task, Variables, Batch, jax.Array],
  tuple[jax.Array, Variables, optax.Updates, dict[str, Any]],
]


def empirical(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """Loss, new collections, gradient, and no further arguments of the update."""

  def loss(params: optax.Params) -> tuple[jax.Array, Variables]:
    return task.loss({**variables, "params": params}, batch, key)

  (value, mutable), gradient = jax.value_and_grad(loss, has_aux=True)(
    variables["params"]
  )
  return value, mutable, gradient, {}


def with_sampled(
  task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Variables, optax.Updates, dict[str, Any]]:
  """``empirical``, and the gradient at sampled targets that MBF-True asks for.

  One forward pass serves both.
  """
  forward_key, sample_key = jax.random.split(key)
  likelihood = task.likelihood

  def outputs(params: optax.Params) -> tuple[jax.Array, Variables]:
    return likelihood.outputs({**variables, "params": params}, batch, forward_key)

  found, pull, mutable = jax.vjp(outputs, variables["params"], has_aux=True)
  value, cotangent = jax.value_and_grad(likelihood.error)(found, batch)
  sampled = jax.grad(likelihood.sampled_error)(found, sample_key)
  (gradient,), (other,) = pull(cotangent), pull(sampled)
  return value, mutable, gradient, {"curvature_gradients": other}


def warm(
  task: Task,
  tx: optax.GradientTransformation,
  state: optax.OptState,
  variables: Variables,
  batches: Iterable[Batch],
) -> optax.OptState:
  """MBF's warm start, as an optimizer's ``prepare``."""

  @jax.jit
  def gradient(variables: Variables, batch: Batch) -> optax.Updates:
    return empirical(task, variables, batch, jax.random.key(0))[2]

  gradients = (gradient(variables, batch) for batch in batches)
  return mbf_optax.warm_start(tx, state, variables["params"], gradients)


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """An optimizer with the settings to try it with.

  Attributes:
    build: from the hyperparameters of a setting, traced, to a transformation. What has
      been compiled for one ``build`` is used again for other settings.
    settings: values of those hyperparameters, under the same names in each.
    gradient: what a step computes from a batch.
    prepare: from the task, the transformation, its fresh state, the variables and an
      iterator of batches to the state to train with: a warm start. Not jitted.
    common: names of hyperparameters that have one value for all settings that are
      trained side by side, such as periods, on which a ``lax.cond`` depends.
    steps: number of updates; ``None`` is the task's.
    ladders: values that a search may go on to, by the name of a hyperparameter, in
      rising order; those of ``settings`` are among them.
  """

  build: Callable[..., optax.GradientTransformation]
  settings: Sequence[Setting]
  gradient: Gradient = empirical
  prepare: Callable[..., Any] | None = None
  common: tuple[str, ...] = ()
  steps: int | None = None
  ladders: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

  @property
  def has_choice(self) -> bool:
    """Whether there is more than one setting to choose from."""
    return len(self.settings) > 1 or bool(self.ladders)

  def steps_of(self, task: Task) -> int:
    """Number of updates in a training of ``task``."""
    return task.steps if self.steps is None else self.steps
