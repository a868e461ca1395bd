"""Trains on eight host devices in every layout; one line of JSON for each.

Run by ``test_layout.py`` in a process of its own: the number of devices is fixed once
jax has started.
"""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mbf_optax
from mbf_optax._tree import paths
from tests.contract import common

SHAPES = {
  "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
  "embed": {"embedding": (32, 16)},
  "full": {"kernel": (8, 16), "bias": (16,)},
  "large": {"kernel": (72, 16)},
  "other": {"kernel": (64, 16), "bias": (16,)},
  "norm": {"scale": (16,)},
  "up": {"kernel": (256, 512), "bias": (512,)},
  "down": {"kernel": (264, 64)},
  "cut": {"kernel": (512, 16)},
}
LAYOUTS = {
  "data": {},
  "fsdp": {
    "conv": {"kernel": P(None, None, None, "x"), "bias": P("x")},
    "embed": {"embedding": P("x")},
    "full": {"kernel": P("x"), "bias": P("x")},
    "large": {"kernel": P("x")},
    "other": {"kernel": P("x"), "bias": P("x")},
    "norm": {"scale": P("x")},
    "up": {"kernel": P("x"), "bias": P("x")},
    "down": {"kernel": P("x")},
    "cut": {"kernel": P("x")},
  },
  "tensor": {
    "conv": {"kernel": P(None, None, None, "y"), "bias": P("y")},
    "embed": {"embedding": P(None, "y")},
    "full": {"kernel": P(None, "y"), "bias": P("y")},
    "large": {"kernel": P(None, "y")},
    "other": {"kernel": P(None, "y"), "bias": P("y")},
    "up": {"kernel": P(None, "y"), "bias": P("y")},
    "down": {"kernel": P("y", None)},
    "cut": {"kernel": P("y", None)},
  },
}
MESHES = {"data": (8, 1), "fsdp": (8, 1), "tensor": (2, 4)}
AXES = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}
STEPS = 6


def partition(other, dense):
  """Matrices as wide as their layers, but for one layer whose are cut into parts."""
  cut = mbf_optax.Layer((0,), "shared", block_limit=64)
  overrides = [("full|large", "full"), ("other", other), ("cut", cut)]
  return mbf_optax.flax_partition(dense, rank=3, block_limit=512, overrides=overrides)


OPTIMIZERS = {
  "mbf": functools.partial(
    mbf_optax.mbf,
    1e-3,
    damping=0.1,
    curvature_update_period=2,
    partition=partition("low_rank", "auto"),
  ),
  "mbf_adam": functools.partial(
    mbf_optax.mbf_adam, 1e-2, partition=partition("two_sided", "two_sided")
  ),
}


def optimizer(name):
  return OPTIMIZERS[name](inverse_update_period=3)


def arrays(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def loss(params, batch, direction):
  """Examples are scalars; their mean is taken over the devices that hold them."""
  terms = jax.tree.map(
    lambda p, d: (
      jnp.mean(batch**2) * jnp.sum(p**2) / 2 + jnp.mean(batch) * (p * d).sum()
    ),
    params,
    direction,
  )
  return sum(jax.tree.leaves(terms))


def step(tx, params, state, batch, direction):
  gradients = jax.grad(loss)(params, batch, direction)
  updates, state = tx.update(gradients, state, params)
  return jax.tree.map(jnp.add, params, updates), state


def trajectory(tx, place, place_batch):
  """Parameters after every step; the first and the last state; the compiled step."""
  rng = np.random.default_rng(1)
  batches = rng.normal(1, 0.1, size=(STEPS, 16)).astype(np.float32)
  examples = [(place_batch(b), place(arrays(2 + k))) for k, b in enumerate(batches)]
  params = place(arrays(0))
  state = first = tx.init(params)
  compiled = jax.jit(functools.partial(step, tx)).lower(params, state, *examples[0])
  compiled = compiled.compile()
  history = []
  for example in examples:
    params, state = compiled(params, state, *example)
    history.append(jax.tree.map(np.asarray, params))
  return history, first, state, compiled.as_text()


def layout_of(state):
  """Mesh axes that divide every axis of the moments and matrices, by path."""
  state = common.our_state(state)
  return {
    path: [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
    for path, leaf in paths.flatten((common.moments(state), state.curvature)).items()
  }


def gathers(program):
  """Shapes that ``all-gather`` makes in every step, and under a condition."""
  blocks = {}
  for block in program.split("\n\n"):
    if name := re.search(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$", block, re.M):
      blocks[name[1]] = block
  always, pending = set(), re.findall(r"^ENTRY %([\w.\-]+)", program, re.M)
  while pending:
    name = pending.pop()
    if name not in always:
      always.add(name)
      for line in blocks[name].splitlines():
        if " conditional(" not in line:
          pending += re.findall(r"(?:body|condition|calls|to_apply)=%([\w.\-]+)", line)
  found = {True: [], False: []}
  for name, block in blocks.items():
    for shapes in re.findall(r"= (.*?) all-gather(?:-start)?\(", block):
      dims = [
        re.findall(r"\d+", shape) for shape in re.findall(r"\[([\d,]*)\]", shapes)
      ]
      found[name in always] += [list(map(int, d)) for d in dims]
  return {"always": found[True], "conditional": found[False]}


def arrays_of(program):
  """Shapes, on one device, of everything that the program computes."""
  shapes = set(re.findall(r"= [a-z]\w*\[([\d,]+)\]", program))
  return [list(map(int, shape.split(","))) for shape in sorted(shapes)]


def place_on(mesh, specs):
  """Places trees of arrays as ``specs`` say, what is not named there everywhere."""

  def place(layer, key, leaf):
    spec = specs.get(layer, {}).get(key, P())
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return lambda values: {
    layer: {key: place(layer, key, leaf) for key, leaf in leaves.items()}
    for layer, leaves in values.items()
  }


def main(name, cases):
  """Prints a line for every ``layout:mode`` of the given ones."""
  tx = optimizer(name)
  alone, *_ = trajectory(tx, functools.partial(jax.tree.map, jnp.asarray), jnp.asarray)
  for case in cases:
    layout, mode = case.split(":")
    specs, kind = LAYOUTS[layout], AXES[mode]
    mesh = jax.make_mesh(MESHES[layout], ("x", "y"), axis_types=(kind, kind))
    place = place_on(mesh, specs)
    place_batch = functools.partial(jax.device_put, device=NamedSharding(mesh, P("x")))
    with jax.set_mesh(mesh):
      history, first, last, program = trajectory(tx, place, place_batch)
      states = {"first": first, "last": last}
      if mode == "explicit":
        states["jitted"] = jax.jit(tx.init)(place(arrays(0)))
    error = max(
      float(np.abs(a - b).max() / np.abs(b).max())
      for a, b in zip(jax.tree.leaves(history), jax.tree.leaves(alone), strict=True)
    )
    case = {"case": [name, layout, mode], "error": error, **gathers(program)}
    case["arrays"] = arrays_of(program)
    placed = {when: layout_of(state) for when, state in states.items()}
    print(json.dumps(case | placed), flush=True)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2:])
