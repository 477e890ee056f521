"""Queries on an open index."""
