"""The Feature page and its tabs."""
