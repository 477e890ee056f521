"""From a run to an index, evaluations, circuits and exports. The layer above training."""
