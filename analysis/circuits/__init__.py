"""Circuits: from a behaviour of a language model to a tested graph of SAE features."""
