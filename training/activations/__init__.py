"""Activations: sources, cache, calibration and shuffled batches."""
