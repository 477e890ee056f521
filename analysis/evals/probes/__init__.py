"""Linear probes on activations and sparse codes, and their labels."""
