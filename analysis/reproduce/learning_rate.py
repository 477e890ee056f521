"""Which learning rate? Held-out FVE and silent features for each rate.

A setting is a variant, a width and a budget; its rates train on one stream per seed. `optim.lr: auto` is derived from these
results (`training.schedule`).
"""

from analysis.reproduce.shared_stream import compare as run
from analysis.reproduce.shared_stream import harvest as prepare

__all__ = ["prepare", "run"]
