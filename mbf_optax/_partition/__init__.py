"""How a parameter tree is read: layers, their mini-blocks and their estimators."""
