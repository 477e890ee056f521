"""The evaluations: one file each, with its `EVALUATION`."""
