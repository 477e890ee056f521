"""The cpu backend: torch for matrix products, numba for everything sparse."""
