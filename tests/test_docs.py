"""The documentation names what exists, its code runs, and it builds."""

import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tomllib

import jax
import pytest

import mbf_optax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]


def text(page):
  return (ROOT / page).read_text()


def test_every_public_name_is_on_the_api_page():
  directives = re.findall(r"^\.\. (?:auto)?\w+:: (\w+)$", text("docs/api.rst"), re.M)
  assert sorted(set(directives) - {"mbf_optax"}) == sorted(mbf_optax.__all__)


def test_the_oldest_releases_are_the_same_everywhere():
  """Those of the metadata, of the README, and of what is tested with them."""
  project = tomllib.loads(text("pyproject.toml"))["project"]
  needed = dict(line.split(">=") for line in project["dependencies"])
  assert sorted(needed) == ["jax", "optax"]
  tested = dict(re.findall(r"^(\w+)==(.*)$", text(".ci/oldest.txt"), re.M))
  assert needed == {name: tested[name] for name in needed}
  python = project["requires-python"].removeprefix(">=")
  oldest = f"Python {python}, jax {needed['jax']} and optax {needed['optax']} or newer"
  assert oldest in text("README.md")


SNIPPETS = [
  pytest.param(snippet, id=f"{page}:{number}")
  for page in PAGES
  for number, snippet in enumerate(
    re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S)
  )
]


def of_the_readme(snippet):
  return snippet.id.startswith("README.md")


@pytest.mark.promotes
@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if not of_the_readme(s)])
def test_snippets_run(snippet):
  """Code that the build of the documentation only prints."""
  exec(snippet, {"jax": jax, "learning_rate": 1e-3})


def printed(program):
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    exec(program, {})
  return output.getvalue()


@pytest.mark.promotes
def test_the_loop_of_the_readme_prints_what_it_says():
  """For both optimizers; the last digits depend on the machine."""
  (loop,) = [snippet.values[0] for snippet in SNIPPETS if of_the_readme(snippet)]
  said = re.search(r"# prints ([\d.]+), and ([\d.]+) with optax.adam$", loop, re.M)
  ours, adam = re.search(r"^tx = (\S+)  # was (\S+)$", loop, re.M).groups()
  for program, loss in zip(
    (loop, loop.replace(ours, adam)), said.groups(), strict=True
  ):
    shown = printed(program)
    assert shown.startswith("loss after 200 steps: ")
    last = float(shown.split()[-1])
    assert last == pytest.approx(float(loss), rel=0.03)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
  folder = (ROOT / page).parent
  links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text(page))
  links += [
    str(ROOT / name)
    for name in re.findall(r"/(?:main|blob/main)/([^)#\s]+)\)", text(page))
  ]
  files = re.findall(r"`((?:benchmarks|docs|examples|tests|\.ci)/[\w./]*)`", text(page))
  missing = [link for link in links if not (folder / link).exists()]
  missing += [name for name in files if not (ROOT / name).exists()]
  assert not missing


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path):
  """Every code cell and example script runs in the build."""
  pytest.importorskip("sphinx", reason='needs pip install ".[docs]"')
  command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "docs", str(tmp_path)]
  built = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
  )
  assert built.returncode == 0, built.stderr
  pages = {path.stem for path in tmp_path.glob("*.html")}
  assert {pathlib.Path(page).stem for page in PAGES if "docs/" in page} <= pages
