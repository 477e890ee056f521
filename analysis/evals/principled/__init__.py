"""Tests of a dictionary on tasks with known attributes (Makelov, Lange & Nanda 2405.08366)."""
