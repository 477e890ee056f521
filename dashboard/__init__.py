"""Lays out in the browser what analysis returns. The top floor."""
