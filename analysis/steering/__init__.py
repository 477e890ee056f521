"""Text generated with features added, clamped or ablated."""
