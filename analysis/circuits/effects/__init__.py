"""What nodes and edges do to a metric: estimators, and the exact ablations that they estimate."""
