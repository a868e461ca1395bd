"""The optimizers as optax transformations, and what works on their states."""
