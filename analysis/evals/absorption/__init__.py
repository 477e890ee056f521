"""Absorption: features that fail to fire on their concept because more specific ones fire instead."""
