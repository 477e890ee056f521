"""Linear probes on activations and on sparse codes, and the labels they are fitted to."""
