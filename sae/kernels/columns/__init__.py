"""Compiled loops over the columns of a code, feature by feature, from which an index is built."""
