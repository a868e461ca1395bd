"""The paper's experiments on real data, and those that it does not have."""
