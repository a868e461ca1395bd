"""float32 or wider."""

import jax
import jax.numpy as jnp
import pytest

from mbf_optax._tree.dtypes import as_float, wide_dtype


@pytest.mark.parametrize(
  ("dtype", "wide"),
  [
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("float8_e4m3fn", "float32"),
    ("float32", "float32"),
    ("float64", "float64"),
    ("complex64", "complex64"),
    ("complex128", "complex128"),
  ],
)
def test_narrow_numbers_are_widened_and_no_others(dtype, wide):
  with jax.enable_x64(True):
    assert wide_dtype(dtype) == jnp.dtype(wide)
    assert as_float(jnp.ones(2, dtype)).dtype == jnp.dtype(wide)
