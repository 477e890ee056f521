"""One prompt's computation, linear with attention patterns and norms held: attribution graphs, heads, QK pairs, traces."""
