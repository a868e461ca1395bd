"""What optax asks of any transformation."""
