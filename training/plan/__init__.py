"""What a training would take on some number of GPUs, from its config alone: memory, bytes between ranks, disk, time."""
