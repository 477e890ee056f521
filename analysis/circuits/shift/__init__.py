"""SHIFT: remove a probe's reliance on a spurious cue by ablating the circuit features judged irrelevant."""
