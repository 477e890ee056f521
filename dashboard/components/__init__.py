"""What the browser does by itself: small inline components, so that they need no build and no network."""
