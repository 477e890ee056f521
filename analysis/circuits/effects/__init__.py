"""Effects of nodes and edges on a metric: estimators, and the exact ablations they estimate."""
