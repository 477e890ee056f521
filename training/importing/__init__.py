"""SAEs of other libraries as runs."""
