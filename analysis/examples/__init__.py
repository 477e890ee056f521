"""Modules with inputs to try `corpus.sources=module:…` on; see docs/guides/own-modules.md."""
