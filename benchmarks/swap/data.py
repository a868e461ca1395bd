"""The problems' data: digits, a text, a citation graph, and what stands in for them."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from benchmarks.paper import data as paper
from benchmarks.paper.experiment import Options
from examples.data import load

Examples = tuple[np.ndarray, np.ndarray]
_WORDS = 512  # features of the graph's nodes that are kept


class Split(NamedTuple):
  """Inputs with their targets, and others that are held out."""

  train: Examples
  test: Examples


@functools.cache
def digits() -> Split:
  """scikit-learn's digits, ``(n, 8, 8, 1)`` in ``[0, 1]``; 360 are held out.

  The images for training are there nine times, moved by up to one pixel both ways, so
  that a small network does not learn them by heart within a short training.
  """
  found = load("digits")
  padded = np.pad(found.x_train, ((0, 0), (1, 1), (1, 1), (0, 0)))
  moved = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
  labels = np.tile(found.y_train, len(moved))
  return Split((np.concatenate(moved), labels), (found.x_test, found.y_test))


def text(folder: pathlib.Path | None) -> tuple[paper.Text, str]:
  """tiny-shakespeare if ``folder`` has it, else the handbook that comes with Python.

  Returns:
    The text as integers, and a sentence on what stands in, empty if nothing does.
  """
  if folder is not None and (folder / "tinyshakespeare.txt").exists():
    return paper.text(Options(extra_data=folder)), ""
  from pydoc_data import topics

  content = "\n".join(topics.topics[name] for name in sorted(topics.topics))
  content = "".join(c if c.isascii() else " " for c in content)
  vocabulary = "".join(sorted(set(content)))
  codes = {character: code for code, character in enumerate(vocabulary)}
  tokens = np.array([codes[character] for character in content], np.int32)
  train = len(tokens) * 9 // 10
  note = (
    "the help texts of Python's language reference, which come with Python, in place of"
    " tinyshakespeare.txt, which --data-dir does not have"
  )
  return paper.Text(tokens[:train], tokens[train:], vocabulary), note


def citations(folder: pathlib.Path | None) -> tuple[paper.Graph, str]:
  """Cora if ``folder`` has it, else a random graph much like it.

  Of the words, the 512 that most papers have are kept.

  Returns:
    The graph, and a sentence on what stands in, empty if nothing does.
  """
  if folder is not None and (folder / "cora.npz").exists():
    graph, note = paper.cora(Options(extra_data=folder)), ""
  else:
    graph = _random_graph()
    note = (
      "a random graph of communities in place of cora.npz, which --data-dir does not"
      " have"
    )
  common = np.sort(np.argsort(-(graph.features > 0).sum(0), kind="stable")[:_WORDS])
  return graph._replace(features=graph.features[:, common]), note


def _random_graph(nodes: int = 2708, classes: int = 7) -> paper.Graph:
  """Papers of a class share a fifth of their words and cite each other mostly."""
  rng = np.random.default_rng(0)
  labels = rng.integers(classes, size=nodes).astype(np.int32)
  own = rng.random((classes, _WORDS)) < 0.05
  chance = np.where(own[labels], 0.06, 0.012)
  features = (rng.random((nodes, _WORDS)) < chance).astype(np.float32)
  source = rng.integers(nodes, size=2 * nodes)
  order = np.argsort(labels, kind="stable")
  sizes = np.bincount(labels, minlength=classes)
  starts = np.cumsum(sizes) - sizes
  of_source = labels[source]
  alike = order[starts[of_source] + rng.integers(sizes[of_source])]
  target = np.where(rng.random(len(source)) < 0.8, alike, rng.integers(nodes))
  edges = np.stack([source, target], 1).astype(np.int32)
  edges = np.unique(np.sort(edges[source != target], axis=1), axis=0)
  train, validation, test = np.split(rng.permutation(nodes)[:1640], [140, 640])
  return paper.Graph(features, labels, edges, train, validation, test)
