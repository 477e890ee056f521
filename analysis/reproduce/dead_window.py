"""How long may a feature be inactive before AuxK revives it? FVE and silent features for each `train.dead_window`.

A setting is a variant, a width and a budget, with the learning rate chosen for it. Two controls train on the same stream:
AuxK off, and gradient clipping off.
"""

from analysis.reproduce.shared_stream import compare as run
from analysis.reproduce.shared_stream import harvest as prepare

__all__ = ["prepare", "run"]
