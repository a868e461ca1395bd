"""Measurements of what the library costs, and the networks they use."""
