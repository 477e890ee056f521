"""Self-test: models whose circuits are known, and checks that must hold exactly."""
