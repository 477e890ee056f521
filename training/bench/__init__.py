"""Benchmarks of harvesting, caching, kernels and training steps."""
