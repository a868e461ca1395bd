"""Short scripts to read first; the benchmarks share their data loader."""
