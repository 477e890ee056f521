"""Evaluations of a run: metrics as pure functions, and the code that runs them."""
