"""Generate text with features added, clamped or ablated."""
