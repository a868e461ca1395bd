"""What is looked up in a tree of parameters."""

from mbf_optax._partition.parameters import Parameters, beside, module_of, name_of
from tests._partition.shapes import array


def parameters(leaves, named=()):
  return Parameters(leaves, lambda path, _: path in named)


def test_paths_of_leaves_their_modules_and_what_is_beside_them():
  assert (module_of("a/b/kernel"), name_of("a/b/kernel")) == ("a/b", "kernel")
  assert (module_of("kernel"), name_of("kernel")) == ("", "kernel")
  assert beside("a/b/kernel", "bias") == "a/b/bias"
  assert beside("kernel", "bias") == "bias"


def test_leaves_by_path():
  leaf = array(4, 8)
  tree = parameters({"m/w": leaf})
  assert "m/w" in tree
  assert "m/b" not in tree
  assert tree["m/w"] is leaf
  assert tree.shape("m/w") == (4, 8)


def test_pairs_stand_in_one_module_and_have_no_known_names():
  leaves = {
    "m/w": array(4, 8),
    "m/c": array(8),
    "n/w": array(4, 8),
    "other/c": array(8),
    "o/w": array(4, 8),
    "o/c": array(8),
  }
  tree = parameters(leaves, named=["o/c"])
  biases = {path: tree.bias_by_shape(path) for path in leaves}
  assert {path: bias for path, bias in biases.items() if bias} == {"m/w": "m/c"}
  weights = {path: tree.weight_by_shape(path) for path in leaves}
  assert {path: weight for path, weight in weights.items() if weight} == {"m/c": "m/w"}


def test_stacked_axes_count_from_the_front():
  """Also where the stack is the last axis of arrays of two ranks."""
  tree = parameters({"dense/kernel": array(4, 8, 5), "dense/bias": array(8, 5)})
  assert tree.stack_axes("dense/kernel") == (2,)
  assert tree.stack_axes("dense/bias") == (1,)
