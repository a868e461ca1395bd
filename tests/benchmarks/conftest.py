"""Tests of the benchmarks are slow ones: they compile whole trainings."""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  for item in items:
    if HERE in item.path.parents:
      item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path, config):
  """Not even imported where no slow test is wanted: that takes seconds."""
  unwanted = config.getoption("markexpr") == "not slow"
  return True if unwanted and HERE in collection_path.parents else None
