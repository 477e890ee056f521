"""The circuit pipeline: from a config to a tested circuit on disk, with progress and resuming."""
