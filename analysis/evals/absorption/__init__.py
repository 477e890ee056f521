"""Absorption: features that are silent where their concept is, because more special ones stand in for them."""
