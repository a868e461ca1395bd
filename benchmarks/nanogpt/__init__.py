"""A public yardstick: nanoGPT's character model at its setting for a CPU."""
