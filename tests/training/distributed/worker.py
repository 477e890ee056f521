"""A rank of trainings, one after another: `torchrun ... -m tests.training.distributed.worker CONFIGS.json RUNS`."""

import json
import sys
from pathlib import Path

from training.run import train


def main(configs: str, runs: str) -> None:
    """Train each."""
    for config in json.loads(Path(configs).read_text()):
        train(config, runs=runs, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
