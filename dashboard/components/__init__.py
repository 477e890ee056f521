"""Small inline components that run in the browser, without a build step or network access."""
