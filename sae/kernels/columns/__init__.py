"""Compiled loops over the columns of a code, one feature after the other: what an index is made of."""
