"""What the command passes to the pages: they run in another thread, long after the arguments were read."""

import os
from pathlib import Path

RUNS = "SAESCOPE_RUNS"
"""Environment variable with the folder of all runs."""


def runs_folder() -> Path:
    """The folder of all runs."""
    return Path(os.environ.get(RUNS, "runs"))
