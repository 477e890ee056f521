"""Description length: bits per row of a trained SAE's codes."""
