"""A wheel and an sdist of the tree: complete, installable, working."""

import email
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import mbf_optax

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = """
import importlib.metadata, importlib.resources, jax, jax.numpy as jnp, mbf_optax
params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
for tx in (mbf_optax.mbf(0.1), mbf_optax.mbf_adam(0.1)):
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert jnp.isfinite(updates["Dense_0"]["kernel"]).all()
assert importlib.resources.files("mbf_optax").joinpath("py.typed").is_file()
assert "site-packages" in mbf_optax.__file__
print(importlib.metadata.version("mbf_optax"))
"""


def run(*command, cwd=ROOT):
  finished = subprocess.run(
    list(map(str, command)),
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  assert finished.returncode == 0, finished.stdout + finished.stderr
  return finished.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The sdist, and the wheel made from it."""
  folder = tmp_path_factory.mktemp("dist")
  run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
  (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
  return {"sdist": sdist, "wheel": wheel}


@pytest.mark.slow
def test_wheel_holds_the_package_its_types_and_its_licence(built):
  with zipfile.ZipFile(built["wheel"]) as archive:
    names = archive.namelist()
    metadata = next(name for name in names if name.endswith("/METADATA"))
    fields = email.message_from_bytes(archive.read(metadata))
  source = (ROOT / "mbf_optax").rglob("*.py")
  modules = {path.relative_to(ROOT).as_posix() for path in source}
  packaged = {name for name in names if name.startswith("mbf_optax/")}
  assert packaged == modules | {"mbf_optax/py.typed"}
  assert any(name.endswith("licenses/LICENSE") for name in names)
  assert {name.split("/")[0].split("-")[0] for name in names} == {"mbf_optax"}
  assert fields["Name"] == "mbf-optax"
  assert fields["Version"] == mbf_optax.__version__
  assert fields["License-Expression"] == "Apache-2.0"
  assert fields["Requires-Python"] == ">=3.11"
  assert "# mbf_optax" in fields.get_payload()


@pytest.mark.slow
def test_sdist_holds_what_tests_and_documentation_need(built):
  with tarfile.open(built["sdist"]) as archive:
    names = {name.partition("/")[2] for name in archive.getnames()}
  tracked = set(run("git", "ls-files").split())
  assert {name for name in tracked if not name.startswith(".")} <= names
  assert not [name for name in names if "__pycache__" in name or "_build" in name]


@pytest.mark.slow
def test_metadata_would_be_accepted(built):
  run(sys.executable, "-m", "twine", "check", "--strict", *built.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_and_steps_in_a_fresh_environment(built, kind, tmp_path):
  environment = tmp_path / "environment"
  venv.create(environment, with_pip=True)
  python = environment / "bin" / "python"
  run(python, "-I", "-m", "pip", "install", built[kind])
  version = run(python, "-I", "-c", SMOKE, cwd=tmp_path)
  assert version.strip() == mbf_optax.__version__
