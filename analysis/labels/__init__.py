"""Labels, notes, tags and lists for a run's features, and automatic labelling."""
