"""From a config to a tested circuit on disk, with progress, and going on where it was interrupted."""
