"""A run becomes an index, evaluations, circuits and exports. The floor above training."""
