"""Formulas as MathML, which browsers draw by themselves, offline and without scripts.

The conversion is docutils'; this registers it with Sphinx.
"""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(translator: HTML5Translator, node: nodes.math) -> None:
  """A formula within a line."""
  translator.body.append(tex2mathml(node.astext()))
  raise nodes.SkipNode


def display(translator: HTML5Translator, node: nodes.math_block) -> None:
  """A formula of its own; several lines are aligned at ``&``."""
  formula = tex2mathml(node.astext(), as_block=True)
  opening = translator.starttag(node, "div", CLASS="math")
  translator.body.append(f"{opening}{formula}</div>\n")
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
  """Adds the renderer called ``mathml``."""
  app.add_html_math_renderer("mathml", (inline, None), (display, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
