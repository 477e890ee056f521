"""Import SAEs from other libraries as runs."""
