"""What a page shows: the URL, the selected run and index, and what the server caches for them."""
