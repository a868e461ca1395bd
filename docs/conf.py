"""Settings of the documentation; CONTRIBUTING.md has the command that builds it."""

import os
import pathlib
import sys
from typing import Any

import jax
import optax
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import mbf_optax  # noqa: E402

# Kernels execute the pages' code in folders of their own.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
os.environ["JAX_PLATFORMS"] = "cpu"

project = "mbf_optax"
copyright = "the mbf_optax developers"
release = version = mbf_optax.__version__

extensions = [
  "mathml",
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"mbf_optax {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_show_sphinx = False

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_render_markdown_format = "myst"  # with tables

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_use_ivar = True

# A missing reference is an error, except to types of other projects and to classes that
# docstrings name without the module that documents them.
nitpicky = True
nitpick_ignore = [("py:class", "MbfState"), ("py:class", "Summary")]
nitpick_ignore_regex = [
  ("py:.*", r"(ArrayLike|ArrayTree|DTypeLike|Partition|ScalarOrSchedule)"),
  ("py:.*", r"(chex|collections|jax|jaxlib|numpy|optax|typing)\..*"),
]

# Aliases that signatures would spell out, the longest first.
ALIASES: dict[str, Any] = {
  "Partition": mbf_optax.Partition,
  "ScalarOrSchedule": optax.ScalarOrSchedule,
  "ArrayTree": optax.Params,
  "ArrayLike": jax.typing.ArrayLike,
  "DTypeLike": jax.typing.DTypeLike,
}


def shorten_aliases(
  app: Sphinx,
  what: str,
  name: str,
  obj: Any,
  options: Any,
  signature: str | None,
  annotation: str | None,
) -> tuple[str | None, str | None]:
  """Writes type aliases in a signature by their names."""
  del app, what, name, obj, options
  for alias, spelled_out in ALIASES.items():
    text = stringify_annotation(spelled_out, "smart")
    signature = signature and signature.replace(text, alias)
    annotation = annotation and annotation.replace(text, alias)
  return signature, annotation


def setup(app: Sphinx) -> None:
  """Connects the hook."""
  app.connect("autodoc-process-signature", shorten_aliases)
