"""Example modules for `corpus.sources=module:…`; see docs/guides/own-modules.md."""
