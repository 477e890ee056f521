"""Page state: the URL, the selected run and index, and the server's caches for them."""
