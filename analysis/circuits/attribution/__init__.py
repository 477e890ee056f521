"""One prompt in the linear forward pass (attention patterns and norms frozen): attribution graphs, heads, QK, traces."""
