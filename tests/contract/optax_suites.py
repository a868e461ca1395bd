"""Runs tests that optax ships for its own optimizers on ours.

The lists of optimizers in optax's test modules are replaced by ours, nothing else. Run
by ``test_optax.py`` in a process of its own: sharding needs eight devices, and optax's
tests the usual promotion of dtypes.
"""

import ast
import importlib.util
import pathlib
import sys
import types
import unittest

import optax

import mbf_optax

# Unnamed arrays are read as Adam would, and converge at its rates.
OURS = [
  {"opt_name": "mbf", "opt_kwargs": {"learning_rate": 1e-3}},
  {"opt_name": "mbf_adam", "opt_kwargs": {"learning_rate": 1e-2}},
]
UNWRAPPED = {"wrapper_name": None, "wrapper_kwargs": None}
LISTS = {
  "optax.contrib._common_test": {
    "_MAIN_OPTIMIZERS_UNDER_TEST": [ours | UNWRAPPED for ours in OURS],
    "_BASE_OPTIMIZERS": [],
  },
  "optax._src.sharding_test": {
    "OPTIMIZERS": {"mbf": mbf_optax.mbf(1.0), "mbf_adam": mbf_optax.mbf_adam(1.0)}
  },
}


def path_of(name):
  """Where optax keeps a test module; ``None`` in a release that ships none."""
  spec = importlib.util.find_spec(name)
  return None if spec is None else pathlib.Path(spec.origin)


def _name(target):
  return target.id if isinstance(target, ast.Name) else None


def module_with_ours(name):
  """The test module with our optimizers in its lists."""
  path, lists = path_of(name), LISTS[name]
  tree, replaced, body = ast.parse(path.read_text()), set(), []
  for node in tree.body:
    if isinstance(node, ast.AugAssign) and _name(node.target) in lists:
      continue  # further optimizers of optax
    if isinstance(node, ast.Assign) and (target := _name(node.targets[0])) in lists:
      if target not in replaced:
        node.value = ast.parse(f"_ours[{target!r}]", mode="eval").body
      replaced.add(target)
    body.append(node)
  assert replaced == set(lists), f"{name} has changed: {replaced}"
  tree.body = body
  module = types.ModuleType(name.replace(".", "_"))
  module._ours = lists
  sys.modules[module.__name__] = module
  exec(compile(ast.fix_missing_locations(tree), path, "exec"), module.__dict__)
  return module


def main():
  """Runs all of them; exits with 1 if one fails."""
  for ours in OURS:
    setattr(optax.contrib, ours["opt_name"], getattr(mbf_optax, ours["opt_name"]))
  suite = unittest.TestSuite()
  for name in LISTS:
    loaded = unittest.defaultTestLoader.loadTestsFromModule(module_with_ours(name))
    suite.addTests(loaded)
  result = unittest.TextTestRunner(verbosity=2).run(suite)
  sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
  main()
