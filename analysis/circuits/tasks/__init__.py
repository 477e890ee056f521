"""Behaviours: pairs of prompts, what is asked of the model's answer, and whether the model does it at all."""
