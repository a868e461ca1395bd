"""Linear algebra of symmetric matrices in plain XLA operations, without LAPACK."""
