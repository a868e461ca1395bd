"""The library's packages depend on each other in one direction."""

import ast
import pathlib
import sys

import pytest

import mbf_optax

PACKAGE = pathlib.Path(mbf_optax.__file__).parent
ROOMS = [
  "_tree",
  "_mesh",
  "_linalg",
  "_partition",
  "_estimators",
  "_optimizers",
  "_reports",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
  """Full names of what a module imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_is_in_the_list():
  assert sorted(ROOMS) == sorted({p.parent.name for p in MODULES} - {PACKAGE.name})


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_tests_of_its_name(room):
  tests = {path.name for path in (pathlib.Path(__file__).parent / room).glob("*.py")}
  modules = {path.name for path in (PACKAGE / room).glob("*.py")} - {"__init__.py"}
  assert {f"test_{name}" for name in modules} <= tests


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_before_it_alone(room):
  names = {name for path in (PACKAGE / room).glob("*.py") for name in imported(path)}
  used = {name.split(".")[1] for name in names if name.startswith("mbf_optax._")}
  assert used <= set(ROOMS[: ROOMS.index(room) + 1])


def test_no_module_is_named_like_a_function():
  """``from package.module import module`` would say nothing."""
  for path in MODULES:
    nodes = ast.parse(path.read_text()).body
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert path.stem not in functions, path


def test_nothing_private_or_else_is_imported():
  """Of jax and optax only public names; nothing else but numpy and what Python has.

  jaxtyping checks shapes in the tests; one module takes it where it is loaded already.
  """
  shapes = PACKAGE / "_tree" / "shapes.py"
  assert {n.split(".")[0] for n in imported(shapes)} >= {"jaxtyping"}
  modules = [path for path in MODULES if path != shapes]
  names = {name for path in modules for name in imported(path)}
  others = {name for name in names if not name.startswith("mbf_optax.")}
  assert not [name for name in others if "._" in name]
  packages = {name.split(".")[0] for name in others} - {"jaxtyping"}
  assert packages - set(sys.stdlib_module_names) == {"jax", "numpy", "optax"}


def test_one_module_names_jaxtyping():
  """It does without where nobody else has imported it; see ``_tree/test_shapes.py``."""
  naming = [p.name for p in MODULES if "jaxtyping" in map(top, imported(p))]
  assert naming == ["shapes.py"]


def top(name):
  return name.partition(".")[0]
