"""Tests of a dictionary against what is known of a task (Makelov, Lange & Nanda 2405.08366)."""
