"""Estimate what a run needs on N GPUs, from its config alone: memory, communication, disk, time."""
