"""Inverses and fractional powers of symmetric matrices, without LAPACK."""
