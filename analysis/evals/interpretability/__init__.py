"""Whether rules that can be read say where features are active, and how many tokens these are."""
