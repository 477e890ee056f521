"""A run measured: what its features are worth, as pure functions and what runs them."""
