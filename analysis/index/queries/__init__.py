"""Questions an open index answers."""
