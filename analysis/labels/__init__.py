"""Labels, notes, tags and lists of a run's features, and automatic labels."""
