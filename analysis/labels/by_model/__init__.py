"""Labels that a language model writes and checks: at an OpenAI-compatible endpoint, or on this machine."""
