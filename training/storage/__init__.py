"""Where caches lie, on disk or in an object store, and how several processes do one piece of work together."""
