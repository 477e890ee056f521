"""SHIFT: unlearn a spurious cue of a probe by switching off the features of its circuit that are judged irrelevant."""
