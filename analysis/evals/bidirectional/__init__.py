"""Whether features of signed codes are used with both signs, and whether the two mean opposite things."""
