"""Storage of caches, on disk or in an object store, and work shared by several processes."""
