"""Settings passed from the command line to the pages, which run in other threads."""

import os
from pathlib import Path

RUNS = "SAESCOPE_RUNS"
"""Environment variable: the folder that holds the runs."""


def runs_folder() -> Path:
    """The folder that holds the runs."""
    return Path(os.environ.get(RUNS, "runs"))
