"""Atomic files, locks and arrays."""
