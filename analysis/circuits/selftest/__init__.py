"""Models whose circuits are known, and what must hold exactly."""
