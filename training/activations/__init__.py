"""Rows of activations: where they come from, the cache, calibration and shuffled batches."""
