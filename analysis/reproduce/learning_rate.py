"""Which learning rate? What is explained of held-out rows, and how many features stay silent on them, for each rate.

A setting is a variant, a width and a budget; its rates train on one stream for each seed. What `optim.lr: auto` is made
from (`training.schedule`).
"""

from analysis.reproduce.shared_stream import compare as run
from analysis.reproduce.shared_stream import harvest as prepare

__all__ = ["prepare", "run"]
