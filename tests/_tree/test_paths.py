"""Paths of leaves: readable, the same for boxed arrays, and one for each leaf."""

import collections

import flax.linen as nn
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import mbf_optax
from mbf_optax._tree import paths

Pair = collections.namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
  ("tree", "expected"),
  [
    (1, [""]),
    ({"a": {"b": 1}}, ["a/b"]),
    ([1, (2,)], ["0", "1/0"]),
    (Pair(1, {"x": 2}), ["left", "right/x"]),
    ({"a": None, "b": optax.MaskedNode(), "c": 1}, ["c"]),
    ({3: 1}, ["3"]),
    ({}, []),
  ],
  ids=str,
)
def test_paths_are_keys_joined_by_slashes(tree, expected):
  assert list(paths.flatten(tree)) == expected


def test_boxes_are_no_part_of_a_path():
  plain = {"layer": {"kernel": jnp.ones(2)}}
  boxed = {"layer": {"kernel": nn.Partitioned(jnp.ones(2), ("x",))}}
  variable = {"layer": {"kernel": nnx.Param(jnp.ones(2))}}
  names = list(paths.flatten(plain))
  assert list(paths.flatten(boxed)) == list(paths.flatten(variable)) == names


def test_an_array_that_is_called_value_keeps_its_name():
  Attention = collections.namedtuple("Attention", ["query", "key", "value"])
  tree = {"attn": Attention(*map(jnp.ones, (1, 2, 3)))}
  leaves = paths.flatten(tree)
  assert list(leaves) == ["attn/query", "attn/key", "attn/value"]
  back = paths.unflatten(tree, leaves)
  assert back["attn"].value is tree["attn"].value
  masked = {"attn": tree["attn"]._replace(query=optax.MaskedNode())}
  assert list(paths.flatten(masked)) == ["attn/key", "attn/value"]


def test_unflatten_is_the_way_back():
  tree = {"a": [1, None], "b": Pair(2, (3,))}
  leaves = paths.flatten(tree)
  assert paths.unflatten(tree, leaves) == tree
  doubled = {path: 2 * leaf for path, leaf in leaves.items()}
  assert paths.unflatten(tree, doubled) == {"a": [2, None], "b": Pair(4, (6,))}


def test_two_leaves_of_one_path():
  tree = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
  with pytest.raises(ValueError, match=r"same path 'a/b'.*rename"):
    mbf_optax.scale_by_mbf().init(tree)
