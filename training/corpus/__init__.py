"""Text to tokens: documents, mixtures, chat templates, packing."""
